//! Whatever is in a tree, and whatever is done to it: applying the difference gives the same.

use proptest::prelude::*;
use windlass_snapshot::Whiteouts;
use windlass_testkit::{Edits, Tree, assert_same};

use crate::support::{Stack, copy, in_memory};

fn edits(most: usize) -> impl Strategy<Value = Edits> {
    proptest::collection::vec(any::<[u8; 6]>(), 0..most).prop_map(|edits| Edits::decode(&edits.concat()))
}

proptest! {
    #[test]
    fn what_an_overlay_has_changed_is_changed_by_its_layer(lower in edits(40), upper in edits(40)) {
        let stack = Stack::in_memory(Whiteouts::Overlay, |root| lower.apply(root));

        let want = stack.change(|root| upper.apply(root));
        let layer = stack.layer();

        assert_same(&want, &stack.applied(&layer));
        assert_same(&want, &stack.stacked(&layer));
    }

    #[test]
    fn what_an_overlay_of_a_user_has_changed_is_changed_by_its_layer(lower in edits(40), upper in edits(40)) {
        let stack = Stack::in_memory(Whiteouts::UserOverlay, |root| lower.apply(root));

        let want = stack.change(|root| upper.apply(root));

        assert_same(&want, &stack.applied(&stack.layer()));
    }

    #[test]
    fn what_a_copy_has_changed_is_changed_by_its_layer(lower in edits(40), upper in edits(40)) {
        let stack = Stack::in_memory(Whiteouts::Remove, |root| lower.apply(root));

        let want = stack.change(|root| upper.apply(root));
        let layer = stack.layer();

        assert_same(&want, &stack.applied(&layer));
        assert_same(&want, &stack.stacked(&layer));
    }

    #[test]
    fn a_whole_tree_is_in_its_layer(edits in edits(80)) {
        let (one, two) = (in_memory(), in_memory());
        edits.apply(one.path());

        copy(one.path(), two.path());

        let mut want = Tree::read(one.path());
        want.nodes.retain(|_, node| node.kind != windlass_testkit::NodeType::Socket);
        assert_same(&want, &Tree::read(two.path()));
    }
}
