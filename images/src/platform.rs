use std::{env::consts, fmt, str::FromStr};

use oci_spec::image::Descriptor;

use crate::{Error, Result};

/// An operating system and a processor, by their Go names: `linux/amd64`, `linux/arm64/v8`.
///
/// Always normalised: `linux/x86_64` and `linux/amd64` are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// A platform, normalised.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let architecture = architecture.to_lowercase();
        let variant = variant.filter(|variant| !variant.is_empty()).map(str::to_lowercase);
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1" | "1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686" | "x86" | "386", _) => ("386", None),
            ("aarch64" | "arm64", None | Some("8")) => ("arm64", Some("v8")),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7")),
            ("armel", _) | ("arm", Some("6")) => ("arm", Some("v6")),
            ("arm", Some("5")) => ("arm", Some("v5")),
            ("arm", Some("8")) => ("arm", Some("v8")),
            ("powerpc64le", variant) => ("ppc64le", variant),
            ("loongarch64", variant) => ("loong64", variant),
            (architecture, variant) => (architecture, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.map(str::to_owned) }
    }

    /// The one this program runs on. A 32-bit ARM counts as `v7`.
    pub fn host() -> Self {
        let architecture = match consts::ARCH {
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            "mips" if cfg!(target_endian = "little") => "mipsle",
            architecture => architecture,
        };
        Self::new(consts::OS, architecture, None)
    }

    /// The operating system: `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The processor: `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The kind of processor, where that matters: `v8`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Whether an image for `other` runs here.
    pub fn matches(&self, other: &oci_spec::image::Platform) -> bool {
        self.rank(&other.into()).is_some()
    }

    /// The descriptor that suits this platform best; the first of equals.
    ///
    /// A descriptor that names no platform is taken only if nothing else runs here. Attestations, whose platform is
    /// `unknown/unknown`, are never taken.
    pub fn best<'a>(&self, descriptors: &'a [Descriptor]) -> Option<&'a Descriptor> {
        descriptors
            .iter()
            .filter_map(|descriptor| match descriptor.platform() {
                Some(platform) => self.rank(&platform.into()).map(|rank| (rank, descriptor)),
                None => Some((usize::MAX, descriptor)),
            })
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, descriptor)| descriptor)
    }

    /// How well an image for `other` runs here: 0 is best, `None` not at all.
    fn rank(&self, other: &Self) -> Option<usize> {
        self.runs().iter().position(|runs| runs == other)
    }

    /// What runs here, the best first.
    fn runs(&self) -> Vec<Self> {
        let level = self.variant().and_then(|variant| variant.strip_prefix('v')?.parse::<u8>().ok());
        let of = |architecture: &'static str, levels: Vec<u8>| {
            levels.into_iter().map(move |level| Self::new(&self.os, architecture, Some(&format!("v{level}"))))
        };
        let lower = match (self.architecture(), level) {
            ("amd64", level) => of("amd64", (1..level.unwrap_or(1)).rev().collect())
                .chain([Self::new(&self.os, "386", None)])
                .collect(),
            ("arm64", Some(level)) => of("arm64", (8..level).rev().collect()).chain(of("arm", vec![8, 7, 6, 5])).collect(),
            ("arm", Some(level)) => of("arm", (5..level).rev().collect()).collect(),
            _ => Vec::new(),
        };
        [vec![self.clone()], lower].concat()
    }
}

impl From<&oci_spec::image::Platform> for Platform {
    fn from(platform: &oci_spec::image::Platform) -> Self {
        let (os, architecture) = (platform.os().to_string(), platform.architecture().to_string());
        Self::new(&os, &architecture, platform.variant().as_deref())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Parses `os/architecture` or `os/architecture/variant`.
    fn from_str(text: &str) -> Result<Self> {
        let is_word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts[..] {
            [os, architecture] if parts.iter().all(is_word) => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] if parts.iter().all(is_word) => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(Error::Malformed {
                what: format!("platform {text:?}"),
                reason: "write os/architecture or os/architecture/variant, such as linux/arm64/v8".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::MediaType;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{descriptor, on};

    #[test]
    fn platforms_are_normalised() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("Linux/aarch64", "linux/arm64/v8"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i686", "linux/386"),
            ("macos/arm64", "darwin/arm64/v8"),
        ] {
            assert_eq!(text.parse::<Platform>().expect(text).to_string(), normal, "{text}");
        }
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b"] {
            let err = text.parse::<Platform>().expect_err(text).to_string();
            assert!(err.contains(&format!("{text:?}")) && err.contains("os/architecture"), "{text}: {err}");
        }
    }

    #[test]
    fn the_best_of_what_runs_is_chosen() {
        for (wanted, offered, chosen) in [
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"][..], Some(1)),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64"], Some(1)),
            ("linux/arm64", &["linux/amd64", "linux/arm/v7"], Some(1)),
            ("linux/amd64", &["linux/386", "linux/amd64/v2", "linux/amd64"], Some(2)),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some(1)),
            ("linux/amd64", &["windows/amd64", "unknown/unknown"], None),
            ("linux/amd64", &["-", "linux/amd64"], Some(1)),
            ("linux/amd64", &["unknown/unknown", "-"], Some(1)),
            ("linux/s390x", &[], None),
        ] {
            let plain = descriptor(MediaType::ImageManifest);
            let offered: Vec<_> = offered
                .iter()
                .map(|platform| if *platform == "-" { plain.clone() } else { on(plain.clone(), platform) })
                .collect();

            let best = wanted.parse::<Platform>().expect(wanted).best(&offered);

            let best = best.map(|best| offered.iter().position(|one| std::ptr::eq(one, best)).expect("one of them"));
            assert_eq!(best, chosen, "{wanted}");
        }
    }

    #[test]
    fn the_host_runs_what_is_made_for_it() {
        let host = Platform::host();

        let made = on(descriptor(MediaType::ImageManifest), &host.to_string());

        assert!(host.matches(made.platform().as_ref().expect("it was set")));
    }

    proptest! {
        #[test]
        fn arbitrary_text_does_not_panic_and_what_parses_round_trips(text in "[a-z0-9/._ -]{0,24}") {
            if let Ok(platform) = text.parse::<Platform>() {
                let again = platform.to_string().parse::<Platform>().expect("it was written by us");
                prop_assert_eq!(again, platform);
            }
        }
    }
}
