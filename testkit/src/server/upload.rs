//! Blobs that a client brings, at once or in pieces.

use std::io;

use axum::http::{Method, StatusCode, header};
use bytes::Bytes;

use super::{answer::Answer, call::Call, mount};
use crate::{fault::Kind, image::is_digest_of, state::Upload};

/// Begins an upload, unless the blob is there already, or comes with this very request.
pub(crate) async fn begin(call: &mut Call, repository: &str) -> io::Result<Answer> {
    if let Some(answer) = mount::mount(call, repository) {
        return Ok(answer);
    }
    let digest = call.parameter("digest").map(str::to_owned);
    if let Some(digest) = digest.filter(|_| !call.state.settings.without_monolithic) {
        let bytes = call.body.all().await?;
        return Ok(commit(call, repository, &digest, bytes));
    }
    let mut shared = call.state.lock();
    let id = format!("upload-{}", shared.uploads_begun);
    shared.uploads_begun += 1;
    let upload = Upload { repository: repository.to_owned(), ..Upload::default() };
    let answer = progress(call, StatusCode::ACCEPTED, &id, &upload);
    shared.uploads.insert(id, upload);
    Ok(match call.state.settings.chunk_min {
        Some(bytes) => answer.header("oci-chunk-min-length", bytes.to_string()),
        None => answer,
    })
}

/// Does to an upload what the method says.
pub(crate) async fn go_on(call: &mut Call, repository: &str, id: &str) -> io::Result<Answer> {
    if call.has(&Kind::LoseUpload) {
        call.state.lock().uploads.remove(id);
    }
    if let Some(refusal) = refuse(call, repository, id) {
        return Ok(refusal);
    }
    match call.method {
        Method::GET => Ok(advance(call, StatusCode::NO_CONTENT, id, |_| {})),
        Method::PATCH => patch(call, id).await,
        Method::PUT => finish(call, repository, id).await,
        _ => {
            call.state.lock().uploads.remove(id);
            Ok(Answer::new(StatusCode::NO_CONTENT))
        }
    }
}

/// Why this request cannot go on with the upload. Questions may come with an old state: whoever asks may have
/// missed the last answer.
fn refuse(call: &Call, repository: &str, id: &str) -> Option<Answer> {
    let shared = call.state.lock();
    let upload = shared.uploads.get(id).filter(|it| it.repository == repository);
    let Some(upload) = upload else {
        let message = "blob upload unknown to registry";
        return Some(Answer::error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", message));
    };
    let state = call.parameter("_state").and_then(|it| it.parse::<usize>().ok());
    let is_write = [Method::PATCH, Method::PUT].contains(&call.method);
    let is_right = state.is_some_and(|it| if is_write { it == upload.state } else { it <= upload.state });
    (!is_right).then(|| invalid("the location is not the one of the last answer"))
}

async fn patch(call: &mut Call, id: &str) -> io::Result<Answer> {
    let media_type = call.header(header::CONTENT_TYPE);
    if media_type.is_some_and(|it| it != "application/octet-stream") {
        return Ok(invalid("a chunk is application/octet-stream"));
    }
    if let Some(refusal) = refuse_chunk(call, id) {
        return Ok(refusal);
    }
    let length = receive(call, id).await?;
    let is_short = call.state.settings.chunk_min.is_some_and(|min| length < min);
    Ok(advance(call, StatusCode::ACCEPTED, id, |upload| upload.is_short = is_short))
}

async fn finish(call: &mut Call, repository: &str, id: &str) -> io::Result<Answer> {
    let Some(digest) = call.parameter("digest").map(str::to_owned) else {
        return Ok(wrong_digest("the digest is missing"));
    };
    if let Some(refusal) = refuse_chunk(call, id) {
        return Ok(refusal);
    }
    receive(call, id).await?;
    let upload = call.state.lock().uploads.remove(id);
    let bytes = upload.map(|it| it.bytes).unwrap_or_default();
    Ok(commit(call, repository, &digest, bytes.into()))
}

/// Why this chunk cannot follow what is there.
fn refuse_chunk(call: &Call, id: &str) -> Option<Answer> {
    let shared = call.state.lock();
    let upload = shared.uploads.get(id)?;
    let length = call.header(header::CONTENT_LENGTH).and_then(|it| it.parse::<usize>().ok());
    if upload.is_short && length != Some(0) {
        return Some(invalid("only the last chunk may be as short as the one before"));
    }
    let range = call.header(header::CONTENT_RANGE)?;
    let parsed =
        range.split_once('-').and_then(|(start, last)| Some((start.parse().ok()?, last.parse().ok()?)));
    let Some((start, last)) = parsed else {
        return Some(invalid("a chunk's range is START-END"));
    };
    let (start, last): (usize, usize) = (start, last);
    if start != upload.bytes.len() {
        let answer = progress(call, StatusCode::RANGE_NOT_SATISFIABLE, id, upload);
        return Some(answer);
    }
    let is_long = length.is_none_or(|length| start + length == last + 1);
    (!is_long).then(|| Answer::error(StatusCode::BAD_REQUEST, "SIZE_INVALID", "the range has another length"))
}

/// Appends the body to the upload as it comes, so that nothing that came is lost when it breaks.
async fn receive(call: &mut Call, id: &str) -> io::Result<usize> {
    let limit = call.faults.iter().find_map(|fault| match fault {
        Kind::DropUpload(bytes) => Some(*bytes),
        _ => None,
    });
    let mut received = 0;
    while let Some(mut bytes) = call.body.next().await? {
        let left = limit.map_or(usize::MAX, |limit| limit - received);
        bytes.truncate(left);
        received += bytes.len();
        if let Some(upload) = call.state.lock().uploads.get_mut(id) {
            upload.bytes.extend_from_slice(&bytes);
        }
        if bytes.len() == left {
            return Err(io::Error::other("the test wants the upload broken"));
        }
    }
    Ok(received)
}

/// Changes the upload, and answers with where it goes on.
fn advance(call: &Call, status: StatusCode, id: &str, change: impl FnOnce(&mut Upload)) -> Answer {
    let mut shared = call.state.lock();
    let Some(upload) = shared.uploads.get_mut(id) else { return invalid("the upload ended meanwhile") };
    upload.state += 1;
    change(upload);
    progress(call, status, id, upload)
}

fn progress(call: &Call, status: StatusCode, id: &str, upload: &Upload) -> Answer {
    let (repository, state) = (&upload.repository, upload.state);
    let path = format!("/v2/{repository}/blobs/uploads/{id}?_state={state}");
    // An upload of one byte and an empty one look the same. So it is with Docker's registry.
    let last = upload.bytes.len().saturating_sub(1);
    Answer::new(status)
        .header("location", call.location(&path))
        .header("range", format!("0-{last}"))
        .header("docker-upload-uuid", id)
}

/// Makes the blob readable, if it is what its digest says.
pub(crate) fn commit(call: &Call, repository: &str, digest: &str, bytes: Bytes) -> Answer {
    if !is_digest_of(digest, &bytes) {
        return wrong_digest("the digest is not that of the content");
    }
    let mut shared = call.state.lock();
    let blobs = &mut shared.repositories.entry(repository.to_owned()).or_default().blobs;
    blobs.insert(digest.to_owned(), bytes);
    Answer::new(StatusCode::CREATED)
        .header("location", call.location(&format!("/v2/{repository}/blobs/{digest}")))
        .header("docker-content-digest", digest)
}

fn wrong_digest(message: &str) -> Answer {
    Answer::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
}

fn invalid(message: &str) -> Answer {
    Answer::error(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", message)
}

#[cfg(test)]
mod tests {
    use crate::{
        Fault, Registry,
        http::{self, Response},
        image::sha256,
    };

    const UPLOADS: &str = "/v2/library/app/blobs/uploads/";

    /// Sends a request of an upload to where the last answer said.
    async fn go_on(
        registry: &Registry,
        method: &str,
        last: &Response,
        range: Option<&str>,
        body: &[u8],
    ) -> Response {
        let headers: Vec<_> = range.map(|it| ("content-range", it)).into_iter().collect();
        http::send(&registry.host(), method, &path(registry, last), &headers, body).await
    }

    fn path(registry: &Registry, last: &Response) -> String {
        let location = last.header("location").expect("there is a location");
        location.strip_prefix(&registry.url()).unwrap_or(location).to_owned()
    }

    async fn begin(registry: &Registry) -> Response {
        let answer = http::send(&registry.host(), "POST", UPLOADS, &[], b"").await;
        assert_eq!((answer.status, answer.header("range")), (202, Some("0-0")));
        answer
    }

    async fn finish(registry: &Registry, last: &Response, content: &[u8], body: &[u8]) -> Response {
        let path = format!("{}&digest={}", path(registry, last), sha256(content));
        http::send(&registry.host(), "PUT", &path, &[], body).await
    }

    #[tokio::test]
    async fn a_blob_comes_in_pieces_or_at_once() {
        for pieces in [0, 1, 2] {
            let registry = Registry::start().await;
            let mut last = begin(&registry).await;
            let chunks = [("0-2", "abc", "0-2"), ("3-4", "de", "0-4")];
            for (range, bytes, progress) in &chunks[..pieces] {
                last = go_on(&registry, "PATCH", &last, Some(range), bytes.as_bytes()).await;
                assert_eq!((last.status, last.header("range")), (202, Some(*progress)));
            }
            let rest = ["abcdef", "def", "f"][pieces];
            let done = finish(&registry, &last, b"abcdef", rest.as_bytes()).await;

            let digest = sha256(b"abcdef");
            assert_eq!((done.status, done.header("docker-content-digest")), (201, Some(digest.as_ref())));
            let got = http::get(&registry.host(), &path(&registry, &done)).await;
            assert_eq!((got.status, &*got.body), (200, &b"abcdef"[..]), "{pieces} pieces");
            assert_eq!(
                (registry.blob("library/app", &digest), registry.uploads()),
                (Some("abcdef".into()), 0)
            );
        }
    }

    #[tokio::test]
    async fn a_blob_may_come_with_the_first_request() {
        let path = format!("{UPLOADS}?digest={}", sha256(b"abc"));
        for (registry, status) in
            [(Registry::builder(), 201), (Registry::builder().without_monolithic_post(), 202)]
        {
            let registry = registry.start().await;

            let answer = http::send(&registry.host(), "POST", &path, &[], b"abc").await;

            assert_eq!(answer.status, status);
            assert_eq!(registry.blob("library/app", sha256(b"abc")).is_some(), status == 201);
        }
    }

    #[tokio::test]
    async fn what_does_not_continue_an_upload_is_refused() {
        let registry = Registry::start().await;
        let first = begin(&registry).await;
        let last = go_on(&registry, "PATCH", &first, None, b"abc").await;
        for (location, range, status, code) in [
            (&last, Some("0-2"), 416, None),
            (&last, Some("4-6"), 416, None),
            (&last, Some("3-9"), 400, Some("SIZE_INVALID")),
            (&last, Some("bytes 3-5/6"), 400, Some("BLOB_UPLOAD_INVALID")),
            (&first, Some("3-5"), 400, Some("BLOB_UPLOAD_INVALID")),
        ] {
            let answer = go_on(&registry, "PATCH", location, range, b"def").await;

            assert_eq!(answer.status, status, "{range:?}");
            match code {
                Some(code) => assert_eq!(answer.error_code(), code, "{range:?}"),
                None => assert_eq!(answer.header("range"), Some("0-2"), "{range:?}"),
            }
        }
        let header = [("content-type", "text/plain")];
        let text = http::send(&registry.host(), "PATCH", &path(&registry, &last), &header, b"def").await;
        assert_eq!((text.status, &*text.error_code()), (400, "BLOB_UPLOAD_INVALID"));
        assert_eq!(finish(&registry, &last, b"abcdef", b"def").await.status, 201, "nothing was damaged");
    }

    #[tokio::test]
    async fn an_upload_tells_how_far_it_is_even_to_whoever_missed_an_answer() {
        let registry = Registry::start().await;
        let first = begin(&registry).await;
        registry.fault(Fault::lose_answer("/uploads/").method("PATCH").once());
        let (lost, _) =
            http::attempt(&registry.host(), "PATCH", &path(&registry, &first), b"abc", usize::MAX).await;

        let status = go_on(&registry, "GET", &first, None, b"").await;

        assert!(lost.is_none());
        assert_eq!((status.status, status.header("range"), &*status.body), (204, Some("0-2"), &b""[..]));
        assert_eq!(finish(&registry, &status, b"abcdef", b"def").await.status, 201);
    }

    #[tokio::test]
    async fn wrong_content_ends_an_upload() {
        let registry = Registry::start().await;
        let upload = begin(&registry).await;

        let wrong = finish(&registry, &upload, b"abc", b"abd").await;
        let again = finish(&registry, &upload, b"abc", b"abc").await;
        let missing = go_on(&registry, "PUT", &begin(&registry).await, None, b"abc").await;

        assert_eq!((wrong.status, &*wrong.error_code()), (400, "DIGEST_INVALID"));
        assert_eq!((again.status, &*again.error_code()), (404, "BLOB_UPLOAD_UNKNOWN"));
        assert_eq!((missing.status, &*missing.error_code()), (400, "DIGEST_INVALID"));
        assert_eq!(registry.blob("library/app", sha256(b"abc")), None);
    }

    #[tokio::test]
    async fn an_upload_can_be_given_up_or_lost() {
        let registry = Registry::start().await;
        let (given_up, lost) = (begin(&registry).await, begin(&registry).await);
        assert_eq!(registry.uploads(), 2);

        assert_eq!(go_on(&registry, "DELETE", &given_up, None, b"").await.status, 204);
        registry.fault(Fault::lose_upload("/uploads/").once());
        assert_eq!(go_on(&registry, "PATCH", &lost, None, b"abc").await.status, 404);

        for upload in [given_up, lost] {
            let answer = go_on(&registry, "GET", &upload, None, b"").await;
            assert_eq!((answer.status, &*answer.error_code()), (404, "BLOB_UPLOAD_UNKNOWN"));
        }
        assert_eq!(registry.uploads(), 0);
    }

    #[tokio::test]
    async fn a_broken_upload_keeps_what_came_before() {
        for method in ["PATCH", "PUT"] {
            let registry = Registry::start().await;
            let content = vec![7; 300_000];
            let upload = begin(&registry).await;
            registry.fault(Fault::drop_upload_after("/uploads/", 100_000).once());
            let digest = sha256(&content);
            let path = format!("{}&digest={digest}", path(&registry, &upload));
            let (broken, _) = http::attempt(&registry.host(), method, &path, &content, usize::MAX).await;

            let status = go_on(&registry, "GET", &upload, None, b"").await;

            assert!(broken.is_none(), "{broken:?}");
            assert_eq!(status.header("range"), Some("0-99999"), "{method}");
            assert_eq!(finish(&registry, &status, &content, &content[100_000..]).await.status, 201);
        }
    }

    #[tokio::test]
    async fn only_the_last_chunk_may_be_short() {
        let registry = Registry::builder().chunk_min(3).relative_locations().start().await;
        let first = begin(&registry).await;
        assert_eq!(first.header("oci-chunk-min-length"), Some("3"));
        assert!(first.header("location").is_some_and(|it| it.starts_with(UPLOADS)), "{first:?}");
        let short = go_on(&registry, "PATCH", &first, None, b"ab").await;

        let refused = go_on(&registry, "PATCH", &short, None, b"cde").await;
        let done = finish(&registry, &short, b"ab", b"").await;

        assert_eq!((refused.status, &*refused.error_code()), (400, "BLOB_UPLOAD_INVALID"));
        assert_eq!(done.status, 201);
    }
}
