/// The result of parsing.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a text is not a reference. Each message quotes the part that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What follows `@` is not a digest.
    #[error(
        "digest {digest:?} is malformed; write the algorithm and the whole hash, as `sha256:` and 64 lower-case hex digits"
    )]
    Digest {
        /// What was found.
        digest: String,
    },

    /// There is no name.
    #[error("the name of the image is missing; write one such as `redis` or `registry.example/app:1`")]
    Empty,

    /// The part before the first `/` is neither a host nor a part of a repository.
    #[error("host {host:?} is malformed; write `name`, `name:port` or `[ipv6]:port`")]
    Host {
        /// What was found.
        host: String,
    },

    /// The name is 64 hex digits, which is how the identifiers of local images look.
    #[error("{name:?} looks like an image's identifier, not like a name; write `name@sha256:` before it")]
    Identifier {
        /// What was found.
        name: String,
    },

    /// The repository is not lower-case words that are joined by separators.
    #[error(
        "repository {repository:?} is malformed; between slashes, write a-z and 0-9, joined by one of `.`, `_`, `__` or by dashes"
    )]
    Repository {
        /// What was found.
        repository: String,
    },

    /// The tag has other characters than a tag may have, or too many.
    #[error(
        "tag {tag:?} is malformed; write at most 128 of a-z, A-Z, 0-9, `_`, `.` and `-`, and neither `.` nor `-` first"
    )]
    Tag {
        /// What was found.
        tag: String,
    },

    /// The repository is too long for a registry.
    #[error("the repository has {length} characters; 255 is the limit")]
    TooLong {
        /// How many characters it has, without the host.
        length: usize,
    },

    /// The repository has upper-case letters.
    #[error("repository {repository:?} has upper-case letters; write it in lower case")]
    Uppercase {
        /// What was found.
        repository: String,
    },
}
