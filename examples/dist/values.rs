//! How values are written on the command line.

use std::time::{Duration, SystemTime};

use anyhow::Context;
use windlass::{Reference, rootfs::compression::Compression};

/// Something that can name an image: a reference, or a digest. Their beginnings look like references, too.
pub(crate) fn image(text: &str) -> Result<String, windlass::reference::Error> {
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex {
        Reference::parse(text)?;
    }
    Ok(text.to_owned())
}

/// A size in bytes, or with a unit: `500`, `20G`, `1.5GiB`. Units are powers of 1024, as we print them.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
    let unit = text[digits.len()..].trim().to_ascii_uppercase();
    let power = match unit.trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 1,
        "M" => 2,
        "G" => 3,
        "T" => 4,
        _ => return Err(format!("{unit} is no unit; use K, M, G or T")),
    };
    let number: f64 = digits.parse().map_err(|_| "write it as 500, 20G or 1.5GiB".to_owned())?;
    match number >= 0.0 && number.is_finite() {
        true => Ok((number * 1024_f64.powi(power)) as u64),
        false => Err("a size is not negative".to_owned()),
    }
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Compressed {
    None,
    Gzip,
    Zstd,
}

impl From<Compressed> for Compression {
    fn from(compressed: Compressed) -> Self {
        match compressed {
            Compressed::None => Self::None,
            Compressed::Gzip => Self::Gzip,
            Compressed::Zstd => Self::Zstd,
        }
    }
}

/// The time that whoever builds reproducibly wants instead of the current one (reproducible-builds.org, SOURCE_DATE_EPOCH).
pub(crate) fn source_date() -> anyhow::Result<Option<SystemTime>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else { return Ok(None) };
    let seconds = text.to_str().and_then(|text| text.parse().ok());
    let time = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    let time = time
        .with_context(|| format!("$SOURCE_DATE_EPOCH is {text:?}; it is a number of seconds since 1970"))?;
    Ok(Some(time))
}
