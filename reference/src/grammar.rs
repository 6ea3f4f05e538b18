//! The grammar of references, as the registries' reference implementation (`distribution/reference`) has it.

use std::net::Ipv6Addr;

/// The most characters of a repository, without its host.
pub(crate) const REPOSITORY_MAX: usize = 255;

/// The most characters of a tag.
const TAG_MAX: usize = 128;

/// `name`, `name:port`, `[ipv6]` or `[ipv6]:port`.
pub(crate) fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<Ipv6Addr>().is_ok()
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    name.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Lower-case words with separators between them, and slashes between those.
pub(crate) fn is_repository(repository: &str) -> bool {
    repository.split('/').all(is_component)
}

/// A word character, then up to 127 of word characters, dots and dashes.
pub(crate) fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= TAG_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

/// A part of a host name. Unlike in DNS, its length is free.
fn is_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// Words of a-z and 0-9. Between two stands `.`, `_`, `__`, or any number of dashes.
fn is_component(component: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|byte| byte == b'-');
    component.starts_with(is_word)
        && component.ends_with(is_word)
        && component.split(is_word).filter(|between| !between.is_empty()).all(is_separator)
}
