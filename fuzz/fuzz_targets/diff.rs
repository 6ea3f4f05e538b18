#![no_main]

#[path = "../../rootfs/tests/diff/support.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod support;

use support::Stack;
use windlass_snapshot::Whiteouts;
use windlass_testkit::{Edits, assert_same};

// Whatever is in a tree, and whatever is done to it: its layer can be written, and makes the same of the lower tree. Needs root,
// to mount overlays.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [kind, middle, edits @ ..] = bytes else { return };
    let (lower, upper) = edits.split_at(edits.len() * usize::from(*middle) / 255);
    let whiteouts = match kind % 3 {
        0 => Whiteouts::Remove,
        1 => Whiteouts::Overlay,
        _ => Whiteouts::UserOverlay,
    };
    let stack = Stack::in_memory(whiteouts, |root| Edits::decode(lower).apply(root));
    let want = stack.change(|root| Edits::decode(upper).apply(root));

    let layer = stack.layer();

    assert_same(&want, &stack.applied(&layer));
    assert_same(&want, &stack.stacked(&layer));
});
