//! The parsers of hostile bytes, for the fuzz targets in `fuzz/`. Not part of the API.

use std::{
    collections::HashMap,
    io::Cursor,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use oci_spec::image::{Descriptor, Digest};
use windlass_content::{
    Blob, ByteStream, Error, Ingest, Ingester, Labels, Provider, Result, Status, Writer, hash::Hasher,
};

use crate::import::{ImportOptions, import};

/// An archive of images: whatever is imported is there.
pub fn archive(bytes: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("there are threads");
    }
    let archive = Cursor::new(bytes.to_vec());
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let store = Memory::default();
            for image in import(&store, archive, &ImportOptions::default()).await.unwrap_or_default() {
                store.open(&image.target).await.expect("it was imported");
            }
        });
    });
}

/// A store in memory.
#[derive(Clone, Debug, Default)]
struct Memory(Arc<Mutex<HashMap<Digest, Bytes>>>);

#[async_trait]
impl Provider for Memory {
    async fn open(&self, descriptor: &Descriptor) -> Result<Blob> {
        match self.0.lock().expect("nobody panics").get(descriptor.digest()) {
            Some(bytes) if bytes.len() as u64 == descriptor.size() => {
                Ok(Blob::new(Arc::new(bytes.clone()), descriptor.size()))
            }
            _ => Err(Error::NotFound { digest: descriptor.digest().clone() }),
        }
    }
}

#[async_trait]
impl Ingester for Memory {
    async fn ingest(&self, _: &str, descriptor: &Descriptor) -> Result<Ingest> {
        match self.open(descriptor).await {
            Ok(_) => Ok(Ingest::Present),
            Err(_) => Ok(Ingest::Open(Box::new(MemoryWriter {
                store: self.clone(),
                expected: descriptor.clone(),
                bytes: Vec::new(),
            }))),
        }
    }
}

#[derive(Debug)]
struct MemoryWriter {
    store: Memory,
    expected: Descriptor,
    bytes: Vec<u8>,
}

#[async_trait]
impl Writer for MemoryWriter {
    fn offset(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn append(&mut self, mut body: ByteStream) -> Result<()> {
        while let Some(chunk) = body.try_next().await.expect("memory can be read") {
            self.bytes.extend_from_slice(&chunk);
        }
        Ok(())
    }

    fn status(&self) -> Status {
        Status::new("", &self.expected, self.offset())
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(())
    }

    async fn commit(self: Box<Self>, _: Labels) -> Result<()> {
        let mut hasher = Hasher::new(self.expected.digest())?;
        hasher.update(&self.bytes);
        let (expected, actual) = (self.expected.digest().clone(), hasher.finish());
        if actual != expected {
            return Err(Error::DigestMismatch { expected, actual });
        }
        self.store.0.lock().expect("nobody panics").insert(expected, self.bytes.into());
        Ok(())
    }
}
