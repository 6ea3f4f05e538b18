//! What overlays are mounted with.

use crate::{Mount, Whiteouts};

/// Longer lists of layers than this do not fit into the page of options that `mount(2)` and most runtimes take.
const PAGE: usize = 3_500;

/// Which attributes overlayfs keeps its notes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attributes {
    /// `trusted.overlay.*`: root's alone.
    Trusted,
    /// `user.overlay.*`: in user namespaces.
    User,
}

impl Attributes {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Trusted => "trusted",
            Self::User => "user",
        }
    }

    pub(super) fn whiteouts(self) -> Whiteouts {
        match self {
            Self::Trusted => Whiteouts::Overlay,
            Self::User => Whiteouts::UserOverlay,
        }
    }
}

/// How a driver mounts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) attributes: Attributes,
    pub(super) volatile: bool,
}

impl Style {
    /// Layers, highest first, with a folder on top that takes what is written.
    pub(super) fn writable(self, lower: &[String], upper: &str, work: &str) -> Mount {
        let mut options = vec!["rw".to_owned()];
        options.extend(layers(lower));
        options.extend([format!("upperdir={upper}"), format!("workdir={work}")]);
        options.push("index=off".to_owned());
        if self.volatile {
            options.push("volatile".to_owned());
        }
        self.overlay(options)
    }

    /// At least two layers, highest first.
    pub(super) fn read_only(self, lower: &[String]) -> Mount {
        let mut options = vec!["ro".to_owned()];
        options.extend(layers(lower));
        self.overlay(options)
    }

    fn overlay(self, mut options: Vec<String>) -> Mount {
        // Not `off`, which means `follow` where the kernel's default says so: that conflicts with `userxattr`, and a layer's
        // redirect would be believed.
        options.extend(["metacopy=off", "redirect_dir=nofollow"].map(str::to_owned));
        if self.attributes == Attributes::User {
            options.push("userxattr".to_owned());
        }
        Mount { fstype: "overlay".to_owned(), source: "overlay".into(), options }
    }
}

/// As everybody takes them, as long as they fit.
fn layers(lower: &[String]) -> Vec<String> {
    let length: usize = lower.iter().map(|path| path.len() + 1).sum();
    if length <= PAGE {
        vec![format!("lowerdir={}", lower.join(":"))]
    } else {
        lower.iter().map(|path| format!("lowerdir+={path}")).collect()
    }
}

pub(super) fn bind(source: String, access: &str) -> Mount {
    Mount {
        fstype: "bind".to_owned(),
        source: source.into(),
        options: vec![access.to_owned(), "rbind".to_owned()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_says_all_that_a_kernel_might_decide_otherwise() {
        let lower = ["/2".to_owned(), "/1".to_owned()];
        let style = |attributes, volatile| Style { attributes, volatile };
        for (style, options) in [
            (
                style(Attributes::Trusted, false),
                "rw,lowerdir=/2:/1,upperdir=/u,workdir=/w,index=off,metacopy=off,redirect_dir=nofollow",
            ),
            (
                style(Attributes::User, true),
                "rw,lowerdir=/2:/1,upperdir=/u,workdir=/w,index=off,volatile,metacopy=off,redirect_dir=nofollow,userxattr",
            ),
        ] {
            assert_eq!(style.writable(&lower, "/u", "/w").options.join(","), options);
        }
    }

    #[test]
    fn more_layers_than_a_page_holds_are_named_one_by_one() {
        let many: Vec<String> = (0..200).map(|number| format!("/a/longer/path/{number}")).collect();

        let options = layers(&many);

        assert_eq!((options.len(), options[7].as_str()), (200, "lowerdir+=/a/longer/path/7"));
    }
}
