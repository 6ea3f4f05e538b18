//! What turning a layer into an image takes of memory: it grows with the entries, not with the bytes.

#![expect(unsafe_code, reason = "an allocator that counts is unsafe to write")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    fs::File,
    io::{BufReader, Read},
    sync::atomic::{AtomicUsize, Ordering},
};

use windlass_rootfs::apply::image::{Options, convert};

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: all is done by the system's allocator; here is only counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller keeps the promises that this needs.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the promises that this needs.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An archive of that many files of that size, made while it is read.
struct Archive {
    files: usize,
    size: u64,
    next: usize,
    header: std::io::Cursor<Vec<u8>>,
    data: u64,
}

impl Archive {
    fn new(files: usize, size: u64) -> Self {
        assert!(size.is_multiple_of(512), "the data fills whole blocks");
        Self { files, size, next: 0, header: std::io::Cursor::default(), data: 0 }
    }
}

impl Read for Archive {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let read = self.header.read(buf)?;
        if read > 0 {
            return Ok(read);
        }
        if self.data > 0 {
            let some = buf.len().min(usize::try_from(self.data).expect("it is small"));
            buf[..some].fill(7);
            self.data -= some as u64;
            return Ok(some);
        }
        if self.next == self.files {
            return Ok(0);
        }
        let mut header = tar::Header::new_ustar();
        let path = format!("usr/lib/python3/dist-packages/package{}/module_{}.py", self.next / 20, self.next);
        header.set_path(path).expect("it is short");
        header.set_size(self.size);
        header.set_mode(0o644);
        header.set_cksum();
        self.header = std::io::Cursor::new(header.as_bytes().to_vec());
        (self.next, self.data) = (self.next + 1, self.size);
        self.read(buf)
    }
}

/// The most that is held at once, in bytes.
fn most(files: usize, size: u64) -> usize {
    let archive = BufReader::with_capacity(64 << 10, Archive::new(files, size));
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let file: File = tempfile::tempfile().expect("there is room");
    let converted = convert(archive, file, &Options::default()).expect("it is a layer");
    assert_eq!(converted.entries, files as u64);
    MOST.load(Ordering::Relaxed) - before
}

#[test]
fn memory_grows_with_the_entries_and_not_with_the_bytes() {
    const ENTRIES: usize = 100_000;

    let many = most(ENTRIES, 0);
    let (few, large) = (most(10, 512), most(10, 8 << 20));

    assert!(many / ENTRIES <= 300, "{} bytes for each entry", many / ENTRIES);
    assert!(large < few + (64 << 10), "{large} bytes for 80 MiB, {few} for hardly any");
}
