use std::{future::ready, io};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use oci_spec::image::Descriptor;
use windlass_content::{ByteStream, Error as ContentError, Provider, hash::Hasher};

use crate::{Error, Fetcher, Result};

/// A fetcher that reads from a content store, so that what is there can go elsewhere.
pub fn from_provider<P: Provider>(provider: P) -> FromProvider<P> {
    FromProvider(provider)
}

/// A content store that fetches. Made by [`from_provider`].
#[derive(Clone, Debug)]
pub struct FromProvider<P>(P);

#[async_trait]
impl<P: Provider> Fetcher for FromProvider<P> {
    /// [`Error::NotFound`] says which blob is not in the store; what else the store answers is [`Error::Content`].
    ///
    /// A blob that is damaged ends with that error, before its last byte, if it was wanted from its start on.
    async fn fetch(&self, descriptor: &Descriptor, from: u64) -> Result<ByteStream> {
        let blob = self.0.open(descriptor).await.map_err(|error| match error {
            ContentError::NotFound { digest } => {
                Error::NotFound { name: digest.to_string(), url: "the content store".into() }
            }
            other => Error::Content(other),
        })?;
        if blob.size() != descriptor.size() {
            return Err(Error::Content(ContentError::SizeMismatch {
                digest: descriptor.digest().clone(),
                expected: descriptor.size(),
                actual: blob.size(),
            }));
        }
        let stream = blob.stream(from);
        // Of a part nobody can say whether it is right; and of what has no bytes, there is no last one.
        match from == 0 && descriptor.size() > 0 {
            true => checked(stream, descriptor),
            false => Ok(stream),
        }
    }
}

/// The same stream, with an error in the place of its last chunk if that would make it another blob.
fn checked(stream: ByteStream, descriptor: &Descriptor) -> Result<ByteStream> {
    let hasher = Hasher::new(descriptor.digest()).map_err(Error::Content)?;
    let (expected, size) = (descriptor.digest().clone(), descriptor.size());
    let check = move |(hasher, offset): &mut (Option<Hasher>, u64), chunk: io::Result<Bytes>| {
        let chunk = chunk.and_then(|chunk| {
            *offset += chunk.len() as u64;
            if let Some(hasher) = hasher {
                hasher.update(&chunk);
            }
            match (*offset >= size).then(|| hasher.take()).flatten().map(Hasher::finish) {
                Some(actual) if actual != expected => {
                    let expected = expected.clone();
                    let error = Error::Content(ContentError::DigestMismatch { expected, actual });
                    Err(io::Error::other(error))
                }
                _ => Ok(chunk),
            }
        });
        ready(Some(chunk))
    };
    Ok(stream.scan((Some(hasher), 0), check).boxed())
}
