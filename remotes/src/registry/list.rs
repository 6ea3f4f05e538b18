//! Lists that come in pages: tags, and the repositories of a registry.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream, stream::BoxStream};
use http::header::LINK;
use serde::Deserialize;
use url::Url;
use windlass_reference::Reference;

use super::{
    Registry, Server,
    auth::Scopes,
    exchange::{Answer, Call},
    limits::Direction,
    link,
};
use crate::{Error, Result, url::shown};

/// The most pages that are read of one list.
const PAGES: usize = 10_000;
/// How many names a page should have, so that it fits into the limit for answers. No registry refuses so few.
const PAGE: &str = "1000";

impl Registry {
    /// The tags of the reference's repository, in the registry's order, page by page as they are asked for.
    ///
    /// The stream ends with an error if a page cannot be read: as [`Resolver::resolve`](crate::Resolver::resolve), and
    /// [`Error::BadResponse`] if the pages lead in a circle or to another host, or if a page lists what cannot be a tag.
    /// Nothing of such a page is given. A list of 10,000 pages has no end, and is an error as well.
    pub fn tags(&self, reference: &Reference) -> BoxStream<'static, Result<String>> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let (registry, reference) = (self.clone(), reference.clone());
        let name = format!("{}/{}", reference.host(), reference.repository());
        let start = async move {
            let repository = registry.repository(&reference).await?;
            let servers = repository.able("list tags", |may| may.resolve)?;
            let path = format!("{}/tags/list", repository.name);
            Ok(Pages::new(servers, path, Scopes::pull(&repository.name)))
        };
        names(start, |page: Page| page.tags, |reference, tag| reference.clone().with_tag(tag).is_ok())
            .map_err(move |error| match error {
                Error::NotFound { url, .. } => Error::NotFound { name: name.clone(), url },
                error => error,
            })
            .boxed()
    }

    /// The repositories of a registry, in its order, page by page as they are asked for. Few public registries allow it.
    ///
    /// `host` is written as in a reference. The stream ends with an error as that of [`tags`](Self::tags).
    pub fn catalog(&self, host: &str) -> BoxStream<'static, Result<String>> {
        #[derive(Deserialize)]
        struct Page {
            repositories: Option<Vec<String>>,
        }
        let (registry, host) = (self.clone(), host.to_owned());
        let start = async move {
            let servers = registry.servers(&host).await?;
            let servers = servers.into_iter().filter(|server| server.endpoint.capabilities.resolve).collect();
            Ok(Pages::new(servers, "_catalog".into(), Scopes::catalog()))
        };
        names(
            start,
            |page: Page| page.repositories,
            |_, name| {
                let parsed = Reference::parse(&format!("localhost/{name}"));
                parsed.is_ok_and(|reference| reference.repository() == name)
            },
        )
    }
}

/// The names on all pages. `good` says whether a name is one: what a registry sends may end up on a terminal.
fn names<P: for<'a> Deserialize<'a> + 'static>(
    start: impl Future<Output = Result<Pages>> + Send + 'static,
    list: fn(P) -> Option<Vec<String>>,
    good: fn(&Reference, &str) -> bool,
) -> BoxStream<'static, Result<String>> {
    let any: Reference = "localhost/name".parse().expect("it is a reference");
    let pages = stream::once(start).map(move |pages| match pages {
        Ok(pages) => pages.stream().boxed(),
        Err(error) => stream::once(async { Err(error) }).boxed(),
    });
    let names = pages.flatten().map(move |page| -> Result<Vec<String>> {
        let (url, bytes) = page?;
        let bad = |reason: &str| Error::BadResponse { url: shown(&url), reason: reason.into() };
        let page: P =
            serde_json::from_slice(&bytes).map_err(|_| bad("it is not the list that was asked for"))?;
        let names = list(page).unwrap_or_default();
        match names.iter().all(|name| good(&any, name)) {
            true => Ok(names),
            false => Err(bad("it lists a name that is none")),
        }
    });
    let names = names.flat_map(|names| match names {
        Ok(names) => stream::iter(names.into_iter().map(Ok).collect::<VecDeque<_>>()),
        Err(error) => stream::iter(VecDeque::from([Err(error)])),
    });
    end_after_error(names.boxed())
}

/// Nothing follows an error: what comes after a gap would be taken for the whole.
fn end_after_error(names: BoxStream<'static, Result<String>>) -> BoxStream<'static, Result<String>> {
    names
        .scan(false, |failed, name| {
            let item = (!*failed).then_some(name);
            *failed |= item.as_ref().is_some_and(Result::is_err);
            futures::future::ready(item)
        })
        .boxed()
}

/// The pages of a list, from the first server that gives the first one.
pub(super) struct Pages {
    servers: Vec<Server>,
    path: String,
    scopes: Scopes,
    /// The page that comes next, and the server that has it.
    next: Option<(Server, Url)>,
    seen: HashSet<Url>,
}

impl Pages {
    pub(super) fn new(servers: Vec<Server>, path: String, scopes: Scopes) -> Self {
        Self { servers, path, scopes, next: None, seen: HashSet::new() }
    }

    /// The same, beginning at this page.
    pub(super) fn from(self, server: &Server, url: Url) -> Self {
        Self { next: Some((server.clone(), url)), ..self }
    }

    /// Whether the page that was read is the last one.
    pub(super) fn is_at_end(&self) -> bool {
        self.next.is_none()
    }

    /// Each page's URL and bytes.
    fn stream(self) -> BoxStream<'static, Result<(Url, Bytes)>> {
        stream::try_unfold(Some(self), |pages| async move {
            let Some(mut pages) = pages else { return Ok(None) };
            let page = pages.read().await?;
            let more = pages.next.is_some().then_some(pages);
            Ok(Some((page, more)))
        })
        .boxed()
    }

    /// The next page's URL and bytes.
    pub(super) async fn read(&mut self) -> Result<(Url, Bytes)> {
        let (server, url, answer, bytes) = match self.next.take() {
            Some((server, url)) => {
                let (answer, bytes) = ask(&server, &url, &self.scopes).await?;
                (server, url, answer, bytes)
            }
            None => self.first().await?,
        };
        let links = answer.headers.get_all(LINK).iter().filter_map(|header| header.to_str().ok());
        if let Some(target) = links.filter_map(link::next).next() {
            let bad = |reason: &str| Error::BadResponse { url: shown(&url), reason: reason.into() };
            let next = url.join(target).map_err(|_| bad("its next page is not at a URL"))?;
            if next.origin() != url.origin() {
                return Err(bad("its next page is on another host"));
            }
            self.seen.insert(url.clone());
            if self.seen.contains(&next) || self.seen.len() >= PAGES {
                return Err(bad("its pages lead in a circle, or have no end"));
            }
            self.next = Some((server, next));
        }
        Ok((url, bytes))
    }

    async fn first(&self) -> Result<(Server, Url, Answer, Bytes)> {
        let mut failure =
            Error::Config { reason: "no server that is configured may be asked for lists".into() };
        for server in &self.servers {
            let mut url = server.url(&self.path);
            url.query_pairs_mut().append_pair("n", PAGE);
            match ask(server, &url, &self.scopes).await {
                Ok((answer, bytes)) => return Ok((server.clone(), url, answer, bytes)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

async fn ask(server: &Server, url: &Url, scopes: &Scopes) -> Result<(Answer, Bytes)> {
    let _turn = server.turn(Direction::Download).await;
    let limit = server.inner.settings.max_manifest_size;
    server.read(&Call::get(url.clone()), scopes, limit).await
}
