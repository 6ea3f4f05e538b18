//! How the in-process registry answers one request.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use axum::{
    body::Body,
    extract::State as Extract,
    http::{HeaderMap, Method, Request as HttpRequest, Response, StatusCode, header},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::json;

use crate::{
    fault::{self, Kind},
    image::Image,
    registry::{Request, State},
};

/// Answers, after it has noted the request and taken the faults that apply to it.
pub(crate) async fn answer(
    Extract(state): Extract<Arc<State>>,
    request: HttpRequest<Body>,
) -> Response<Body> {
    let path = request.uri().path_and_query().map_or_else(|| request.uri().path(), |it| it.as_str());
    let faults = note(&state, request.method(), path, request.headers());
    for fault in &faults {
        if let Kind::Delay(duration) = fault {
            tokio::time::sleep(*duration).await;
        }
    }
    if faults.contains(&Kind::NoHead) {
        return response(StatusCode::METHOD_NOT_ALLOWED, &[], Body::empty());
    }
    let status = faults.iter().find_map(|fault| match fault {
        Kind::Status(status, headers, body) => Some((status, headers, body)),
        _ => None,
    });
    if let Some((status, headers, body)) = status {
        let status = StatusCode::from_u16(*status).expect("the test's status is one");
        let headers: Vec<_> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        return response(status, &headers, Body::from(body.clone()));
    }

    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if path == "/token" && state.auth.token {
        return token(&state, request.headers(), query);
    }
    let Some(rest) = path.strip_prefix("/v2/") else {
        return error(StatusCode::NOT_FOUND, "UNSUPPORTED", "not the distribution API");
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only");
    }
    let target = Target::parse(rest);
    if let Some(refusal) = refuse(&state, request.headers(), target.as_ref().map(|it| it.repository)) {
        return refusal;
    }
    match target {
        None if rest.is_empty() => response(StatusCode::OK, &[], Body::from("{}")),
        None => error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"),
        Some(target) => serve(&state, &request, &target, &faults),
    }
}

/// `REPOSITORY/manifests/REFERENCE` or `REPOSITORY/blobs/DIGEST`.
struct Target<'a> {
    repository: &'a str,
    reference: &'a str,
    is_manifest: bool,
}

impl<'a> Target<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let (rest, reference) = path.rsplit_once('/')?;
        let (repository, kind) = rest.rsplit_once('/')?;
        let is_manifest = match kind {
            "manifests" => true,
            "blobs" => false,
            _ => return None,
        };
        Some(Self { repository, reference, is_manifest })
    }
}

/// Writes the request into the log, and gives the first fault of each kind that applies to it.
fn note(state: &State, method: &Method, path: &str, headers: &HeaderMap) -> Vec<Kind> {
    let text = |value: &header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let log = headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect::<BTreeMap<_, _>>();
    let mut shared = state.lock();
    shared.requests.push(Request { method: method.to_string(), path: path.to_owned(), headers: log });

    let has_range = headers.contains_key(header::RANGE);
    let mut faults: Vec<Kind> = Vec::new();
    for fault in &mut shared.faults {
        let is_new =
            !faults.iter().any(|it| std::mem::discriminant(it) == std::mem::discriminant(&fault.kind));
        if is_new && fault.applies(method, path, has_range) {
            faults.push(fault.kind.clone());
        }
    }
    faults
}

fn serve(state: &State, request: &HttpRequest<Body>, target: &Target<'_>, faults: &[Kind]) -> Response<Body> {
    let shared = state.lock();
    let Some(repository) = shared.repositories.get(target.repository) else {
        return error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry");
    };
    let tagged = repository.tags.get(target.reference).filter(|_| target.is_manifest);
    let digest = tagged.map_or(target.reference, String::as_str);
    let found =
        repository.blobs.get(digest).filter(|(kind, _)| Image::is_manifest(kind) == target.is_manifest);
    let Some((media_type, bytes)) = found else {
        let code = if target.is_manifest { "MANIFEST_UNKNOWN" } else { "BLOB_UNKNOWN" };
        return error(StatusCode::NOT_FOUND, code, "unknown to registry");
    };

    let etag = format!("\"{digest}\"");
    let size = bytes.len();
    let media_type = if target.is_manifest { media_type } else { "application/octet-stream" };
    let mut headers = vec![("content-type", media_type.to_owned()), ("etag", etag.clone())];
    if !faults.contains(&Kind::NoDigestHeader) {
        headers.push(("docker-content-digest", digest.to_owned()));
    }
    let (mut status, mut bytes) = (StatusCode::OK, bytes.clone());
    if !target.is_manifest {
        headers.push(("accept-ranges", "bytes".to_owned()));
        let same = request.headers().get(header::IF_RANGE).is_none_or(|it| it.as_bytes() == etag.as_bytes());
        let asked = request.headers().get(header::RANGE).and_then(|it| it.to_str().ok());
        match asked.filter(|_| same && !faults.contains(&Kind::IgnoreRange)).map(|it| range(it, size)) {
            None | Some(Asked::Whole) => {}
            Some(Asked::Part(part)) => {
                status = StatusCode::PARTIAL_CONTENT;
                headers.push(("content-range", format!("bytes {}-{}/{size}", part.start, part.end - 1)));
                bytes = bytes.slice(part);
            }
            Some(Asked::Nothing) => {
                status = StatusCode::RANGE_NOT_SATISFIABLE;
                headers.push(("content-range", format!("bytes */{size}")));
                bytes = Bytes::new();
            }
        }
    }
    headers.push(("content-length", bytes.len().to_string()));

    let body = if request.method() == Method::HEAD { Body::empty() } else { fault::body(bytes, faults) };
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
    response(status, &headers, body)
}

enum Asked {
    Whole,
    Part(Range<usize>),
    Nothing,
}

/// What a `Range` header asks for. One that does not parse is as good as none, as HTTP has it.
fn range(header: &str, size: usize) -> Asked {
    let parsed = header.strip_prefix("bytes=").and_then(|it| it.split_once('-'));
    let part = match parsed.map(|(start, end)| (start.parse::<usize>(), end.parse::<usize>(), start, end)) {
        Some((Ok(start), Ok(last), ..)) if start <= last => start..last.saturating_add(1).min(size),
        Some((Ok(start), _, _, "")) => start..size,
        Some((_, Ok(length), "", _)) => size.saturating_sub(length)..size,
        _ => return Asked::Whole,
    };
    if part.start < part.end { Asked::Part(part) } else { Asked::Nothing }
}

/// The 401 for whoever has not shown what this registry asks for.
fn refuse(state: &State, headers: &HeaderMap, repository: Option<&str>) -> Option<Response<Body>> {
    if !state.auth.token {
        return refuse_password(state, headers);
    }
    let scope = repository.map(|it| format!("repository:{it}:pull"));
    let token = authorization(headers, "Bearer ");
    let shared = state.lock();
    let scopes = token.and_then(|token| shared.tokens.get(token));
    if scopes.is_some_and(|scopes| scope.as_ref().is_none_or(|scope| covers(scopes, scope))) {
        return None;
    }
    let host = &state.host;
    let mut challenge = format!("Bearer realm=\"http://{host}/token\",service=\"testkit\"");
    if let Some(scope) = scope {
        challenge += &format!(",scope=\"{scope}\"");
    }
    Some(unauthorized(&challenge))
}

fn refuse_password(state: &State, headers: &HeaderMap) -> Option<Response<Body>> {
    let (user, password) = state.auth.password.as_ref()?;
    let right = STANDARD.encode(format!("{user}:{password}"));
    let is_right = authorization(headers, "Basic ") == Some(&*right);
    (!is_right).then(|| unauthorized("Basic realm=\"testkit\""))
}

/// Whether one of these scopes, `repository:NAME:ACTION,…`, allows pulling as `wanted` asks.
fn covers(scopes: &[String], wanted: &str) -> bool {
    let (wanted, _) = wanted.rsplit_once(':').expect("a scope has two colons");
    scopes
        .iter()
        .filter_map(|scope| scope.rsplit_once(':'))
        .any(|(name, actions)| name == wanted && actions.split(',').any(|action| action == "pull"))
}

fn token(state: &State, headers: &HeaderMap, query: &str) -> Response<Body> {
    if let Some(refusal) = refuse_password(state, headers) {
        return refusal;
    }
    let scopes = url::form_urlencoded::parse(query.as_bytes())
        .filter(|(name, _)| name == "scope")
        .flat_map(|(_, value)| value.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let mut shared = state.lock();
    let token = format!("token-{}", shared.tokens.len());
    shared.tokens.insert(token.clone(), scopes);
    let body = json!({ "token": token, "access_token": token, "expires_in": 300 });
    response(StatusCode::OK, &[("content-type", "application/json")], Body::from(body.to_string()))
}

fn authorization<'a>(headers: &'a HeaderMap, scheme: &str) -> Option<&'a str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix(scheme)
}

fn unauthorized(challenge: &str) -> Response<Body> {
    let mut refusal = error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
    let challenge = challenge.parse().expect("names of repositories and hosts are ASCII");
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    refusal
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({ "errors": [{ "code": code, "message": message }] });
    response(status, &[("content-type", "application/json")], Body::from(body.to_string()))
}

fn response(status: StatusCode, headers: &[(&str, &str)], body: Body) -> Response<Body> {
    let mut response = Response::builder().status(status);
    for &(name, value) in headers {
        response = response.header(name, value);
    }
    response.body(body).expect("the headers are ASCII")
}
