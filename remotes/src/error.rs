use std::{io, path::PathBuf};

use oci_spec::image::Digest;

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a registry, or the way to it, or an image in a local file, refused.
///
/// URLs in it carry neither queries nor passwords.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A local file has several images, and the caller did not say which one is wanted.
    #[error("{} has several images; choose one of {available}", path.display())]
    Ambiguous {
        /// The folder or archive.
        path: PathBuf,
        /// The names of its images, or the digests of those that have none, separated by commas.
        available: String,
    },

    /// The registry answered something that the protocol does not allow.
    #[error("{url} gave an answer that cannot be used: {reason}")]
    BadResponse {
        /// What was asked.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },

    /// The settings cannot be used.
    #[error("cannot use the registry settings: {reason}")]
    Config {
        /// What is wrong, and with which setting.
        reason: String,
    },

    /// A content store that content was to be read from refused.
    #[error(transparent)]
    Content(#[from] windlass_content::Error),

    /// No connection came about: a wrong name or port, or the registry is down.
    #[error("registry {host} does not answer")]
    Connect {
        /// The registry, with its port.
        host: String,
        /// What was asked.
        url: String,
        /// The innermost cause.
        source: io::Error,
    },

    /// The bytes are not the ones that the digest names. Asking again rarely helps.
    #[error("{url} gave content of digest {actual} instead of {expected}")]
    DigestMismatch {
        /// What was asked: a URL or a path.
        url: String,
        /// What was wanted.
        expected: Digest,
        /// What came.
        actual: Digest,
    },

    /// A file that says how to reach or to enter registries, or a local image, cannot be used.
    #[error("cannot use {}{}: {reason}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    File {
        /// The file. The name of an entry follows the path of its archive.
        path: PathBuf,
        /// Where in it, counted from 1, if that is known.
        line: Option<usize>,
        /// What is wrong with it.
        reason: String,
    },

    /// A credential helper could not say who to be at a registry.
    #[error("credential helper {helper} failed for {host}: {reason}")]
    Helper {
        /// The program.
        helper: String,
        /// The registry that it was asked about.
        host: String,
        /// What went wrong, and what to do.
        reason: String,
    },

    /// There is nothing of that name. Some registries also answer so for what may not be read.
    #[error("{name} not found in {}", place(url))]
    NotFound {
        /// The reference, or the repository and digest, that was asked for.
        name: String,
        /// What was asked: a URL, or the local place in words.
        url: String,
    },

    /// The name of an image is malformed.
    #[error(transparent)]
    Reference(#[from] windlass_reference::Error),

    /// The image is in Docker's format of before 2016, which this crate does not read.
    #[error("{name} is a Docker schema 1 image, which is not supported; push it again with a current tool")]
    SchemaOne {
        /// The reference that was asked for.
        name: String,
    },

    /// The content to push could not be read, or is not as long as its descriptor says.
    #[error("cannot read {digest} to push it")]
    Source {
        /// What was to be pushed.
        digest: Digest,
        /// What the stream answered.
        source: io::Error,
    },

    /// The registry refused for a reason of its own.
    #[error("registry {host} answered {status} to {url}{}", detail(message))]
    Status {
        /// The registry, with its port.
        host: String,
        /// What was asked.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words. Empty if it had none.
        message: String,
    },

    /// A connection cannot be made in the way that is wanted: no TLS provider is installed, a certificate cannot be read, or
    /// that of the registry is not trusted.
    #[error("cannot connect to {host}: {reason}")]
    Tls {
        /// The registry, with its port.
        host: String,
        /// What is missing, and what to do.
        reason: String,
    },

    /// The answer is larger than the limit.
    #[error("{url} has more than {limit} bytes, which is the limit for such answers")]
    TooLarge {
        /// What was asked: a URL or a path.
        url: String,
        /// The limit, in bytes.
        limit: u64,
    },

    /// The connection broke, or nothing came for too long.
    #[error("the connection to registry {host} broke during {url}")]
    Transport {
        /// The registry, with its port.
        host: String,
        /// What was asked.
        url: String,
        /// The innermost cause.
        source: io::Error,
    },

    /// The operating system refused.
    #[error("cannot {op} {}", path.display())]
    Io {
        /// What was being done, as a verb phrase: `"open"`.
        op: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// What the system answered.
        source: io::Error,
    },

    /// The registry wants to know who asks, or does not let this caller read.
    #[error("unauthorized: registry {host} denies access to {url}{}", detail(message))]
    Unauthorized {
        /// The registry, with its port.
        host: String,
        /// What was asked.
        url: String,
        /// The registry's own words. Empty if it had none.
        message: String,
    },

    /// The registry does not know an upload any more that it began. The same push may succeed, from its start.
    #[error("the registry lost the upload of {digest} at {url}")]
    UploadLost {
        /// What was being pushed.
        digest: Digest,
        /// What was asked.
        url: String,
    },
}

impl Error {
    /// What went wrong at a node of a walk that this crate made.
    pub(crate) fn from_walk(error: windlass_images::Error) -> Self {
        match error {
            windlass_images::Error::Handler { source, digest, .. } => match source.downcast::<Self>() {
                Ok(error) => *error,
                Err(source) => Self::Source { digest, source: io::Error::other(source) },
            },
            error => Self::Config { reason: error.to_string() },
        }
    }

    /// Whether the same call may succeed later without any change by the caller.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Transport { .. } | Self::UploadLost { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

fn detail(message: &str) -> String {
    match message.is_empty() {
        true => String::new(),
        false => format!(": {message}"),
    }
}

/// Where something was looked for, as people say it: not every one of them wants to read a URL.
fn place(url: &str) -> &str {
    match url.starts_with("http://") || url.starts_with("https://") {
        true => "the registry",
        false => url,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_pass_is_transient() {
        let status = |status| Error::Status {
            host: "r.example".into(),
            url: "https://r.example/v2/".into(),
            status,
            message: String::new(),
        };
        assert!(status(503).is_transient() && status(429).is_transient());
        assert!(!status(400).is_transient());
        assert_eq!(status(400).to_string(), "registry r.example answered 400 to https://r.example/v2/");
    }
}
