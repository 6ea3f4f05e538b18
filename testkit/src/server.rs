//! How the in-process registry answers one request.
//!
//! ```text
//! listen ──▶ answer ──▶ token ──▶ pull, list, upload, manifest, signed ──▶ Answer ──faults──▶ the client
//! ```

pub(crate) mod answer;
mod call;
mod list;
pub(crate) mod listen;
mod manifest;
mod mount;
mod pull;
pub(crate) mod signed;
pub(crate) mod token;
mod upload;

use std::{io, iter, sync::Arc};

use axum::{
    body::Body,
    http::{Method, Request, Response, StatusCode},
};
use hyper::body::Incoming;

use self::{
    answer::{Answer, Counted, Flight},
    call::Call,
    listen::Reset,
};
use crate::{fault::Kind, state::State};

/// Answers, after it has noted the request and taken the faults that apply to it. An error breaks the
/// connection.
pub(crate) async fn answer(
    state: Arc<State>,
    reset: Reset,
    request: Request<Incoming>,
) -> io::Result<Response<Counted>> {
    let flight = Flight::new(&state);
    let (parts, body) = request.into_parts();
    let mut call = Call::new(state, parts, Body::new(body));
    let answer = answer_to(&mut call).await?;
    if !call.has(&Kind::Unread) {
        call.body.drain(&call.headers).await;
    }
    if call.has(&Kind::LoseAnswer) {
        return Err(io::Error::other("the test wants the answer lost"));
    }
    Ok(answer.send(&call.faults, &call.method, &reset, flight))
}

async fn answer_to(call: &mut Call) -> io::Result<Answer> {
    call.take_faults(true);
    for fault in &call.faults {
        if let Kind::Delay(duration) = fault {
            tokio::time::sleep(*duration).await;
        }
    }
    if call.has(&Kind::HangUp) {
        return Err(io::Error::other("the test wants no answer"));
    }
    if call.has(&Kind::NoHead) {
        return Ok(Answer::new(StatusCode::METHOD_NOT_ALLOWED));
    }
    if let Some(Kind::Status(answer)) = call.faults.iter().find(|it| matches!(it, Kind::Status(_))) {
        let answer = answer.clone();
        call.take_faults(false);
        return Ok(answer);
    }

    let path = call.path.clone();
    let Some(rest) = path.strip_prefix("/v2/") else {
        call.take_faults(false);
        return match &*path {
            "/token" if call.state.settings.token => token::give(call).await,
            _ if path.starts_with(signed::FOLDER) => Ok(redirect(call).unwrap_or_else(|| signed::get(call))),
            _ => Ok(Answer::error(StatusCode::NOT_FOUND, "UNSUPPORTED", "not the distribution API")),
        };
    };
    let target = Target::parse(rest);
    let scopes = target.as_ref().map(|it| it.scopes(call)).unwrap_or_default();
    if let Some(refusal) = token::refuse(call, &scopes) {
        return Ok(refusal);
    }
    call.take_faults(false);
    if let Some(elsewhere) = redirect(call) {
        return Ok(elsewhere);
    }
    let Some(target) = target else {
        return Ok(Answer::error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no such endpoint"));
    };
    route(call, target).await
}

async fn route(call: &mut Call, target: Target<'_>) -> io::Result<Answer> {
    let is_read = is_read(&call.method);
    Ok(match target {
        Target::Base if is_read => Answer::json(StatusCode::OK, &serde_json::json!({})),
        Target::Manifest { repository, reference } if is_read => pull::manifest(call, repository, reference),
        Target::Blob { repository, digest } if is_read => pull::blob(call, repository, digest),
        Target::Tags { repository } if is_read => list::tags(call, repository),
        Target::Catalog if is_read => list::catalog(call),
        Target::Referrers { repository, digest } if is_read => list::referrers(call, repository, digest),
        Target::Uploads { repository } if call.method == Method::POST => {
            upload::begin(call, repository).await?
        }
        Target::Upload { repository, id }
            if [Method::GET, Method::PATCH, Method::PUT, Method::DELETE].contains(&call.method) =>
        {
            upload::go_on(call, repository, id).await?
        }
        Target::Manifest { repository, reference } if call.method == Method::PUT => {
            manifest::put(call, repository, reference).await?
        }
        _ => Answer::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "no such method here"),
    })
}

fn is_read(method: &Method) -> bool {
    [Method::GET, Method::HEAD].contains(method)
}

/// What the [`Redirect`](Kind::Redirect) fault answers.
fn redirect(call: &Call) -> Option<Answer> {
    call.faults.iter().find_map(|fault| match fault {
        Kind::Redirect(status, url) => Some(Answer::new(*status).header("location", &**url)),
        _ => None,
    })
}

/// What a path below `/v2/` names.
enum Target<'a> {
    /// `/v2/` itself.
    Base,
    /// `REPOSITORY/manifests/REFERENCE`
    Manifest { repository: &'a str, reference: &'a str },
    /// `REPOSITORY/blobs/DIGEST`
    Blob { repository: &'a str, digest: &'a str },
    /// `REPOSITORY/blobs/uploads/`
    Uploads { repository: &'a str },
    /// `REPOSITORY/blobs/uploads/ID`
    Upload { repository: &'a str, id: &'a str },
    /// `REPOSITORY/tags/list`
    Tags { repository: &'a str },
    /// `REPOSITORY/referrers/DIGEST`
    Referrers { repository: &'a str, digest: &'a str },
    /// `_catalog`
    Catalog,
}

impl<'a> Target<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        match path {
            "" => return Some(Self::Base),
            "_catalog" => return Some(Self::Catalog),
            _ => {}
        }
        let (rest, last) = path.rsplit_once('/')?;
        let (repository, kind) = rest.rsplit_once('/')?;
        match (kind, last) {
            ("manifests", reference) => Some(Self::Manifest { repository, reference }),
            ("blobs", digest) => Some(Self::Blob { repository, digest }),
            ("referrers", digest) => Some(Self::Referrers { repository, digest }),
            ("tags", "list") => Some(Self::Tags { repository }),
            ("uploads", id) => {
                let repository = repository.strip_suffix("/blobs")?;
                Some(if id.is_empty() {
                    Self::Uploads { repository }
                } else {
                    Self::Upload { repository, id }
                })
            }
            _ => None,
        }
    }

    /// What a token must allow: the first of these, and the others if it is to have all that it asks for.
    fn scopes(&self, call: &Call) -> Vec<String> {
        let repository = match self {
            Self::Base => return Vec::new(),
            Self::Catalog => return vec!["registry:catalog:*".to_owned()],
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Uploads { repository }
            | Self::Upload { repository, .. }
            | Self::Tags { repository }
            | Self::Referrers { repository, .. } => repository,
        };
        let is_upload = matches!(self, Self::Uploads { .. } | Self::Upload { .. });
        let actions = if is_read(&call.method) && !is_upload { "pull" } else { "pull,push" };
        let from = call.parameter("from").filter(|_| matches!(self, Self::Uploads { .. }));
        let from = from.map(|from| format!("repository:{from}:pull"));
        iter::once(format!("repository:{repository}:{actions}")).chain(from).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Fault, http, sample};

    #[tokio::test]
    async fn faults_apply_as_often_as_they_say_and_to_the_method_that_they_say() {
        let (registry, image) = sample::registry().await;
        let path = sample::layer_path(&image);
        registry.fault(Fault::answer("/blobs/", 429, &[("Retry-After", "3")], "later").times(2));
        registry.fault(Fault::no_head("/manifests/"));
        registry.fault(Fault::status("/manifests/", 500).method("DELETE"));

        let (mut statuses, host) = (Vec::new(), registry.host());
        for _ in 0..3 {
            statuses.push(http::get(&host, &path).await.status);
        }
        let manifest = "/v2/library/app/manifests/latest";
        let head = http::send(&host, "HEAD", manifest, &[], b"").await;
        let get = http::get(&host, manifest).await;
        let delete = http::send(&host, "DELETE", manifest, &[], b"").await;

        assert_eq!(statuses, [429, 429, 200]);
        assert_eq!((head.status, get.status, delete.status), (405, 200, 500));
    }

    #[tokio::test]
    async fn a_redirect_names_any_url() {
        let (registry, image) = sample::registry().await;
        registry.fault(Fault::redirect("/blobs/", 308, "http://127.0.0.1:1/elsewhere").once());

        let answer = http::get(&registry.host(), &sample::layer_path(&image)).await;

        assert_eq!((answer.status, answer.header("location")), (308, Some("http://127.0.0.1:1/elsewhere")));
    }

    #[tokio::test]
    async fn a_hung_up_request_has_no_answer() {
        let (registry, image) = sample::registry().await;
        for fault in [Fault::hang_up("/blobs/"), Fault::lose_answer("/blobs/")] {
            registry.fault(fault.clone().once());

            let path = sample::layer_path(&image);
            let (answer, _) = http::attempt(&registry.host(), "GET", &path, b"", usize::MAX).await;

            assert!(answer.is_none(), "{fault:?}: {answer:?}");
        }
        assert_eq!(registry.requests().len(), 2);
    }

    #[tokio::test]
    async fn an_answer_need_not_wait_for_the_body() {
        let (registry, _) = sample::registry().await;
        registry.fault(Fault::status("/blobs/uploads/", 403));
        registry.fault(Fault::unread("/blobs/uploads/"));

        let path = "/v2/library/app/blobs/uploads/";
        let (answer, _) = http::attempt(&registry.host(), "POST", path, b"unread", usize::MAX).await;

        assert_eq!(answer.map(|it| it.status), Some(403));
        assert_eq!(registry.requests()[0].body_length, 0);
    }
}
