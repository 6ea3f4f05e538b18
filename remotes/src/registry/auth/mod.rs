//! Who asks: tokens and passwords, each kept for the server and scope that it is for.

mod challenge;
mod scope;
mod token;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use url::Url;

use super::Server;
use crate::{Result, credentials::Credential};

use challenge::Challenge;
pub(super) use scope::Scopes;
use token::Token;

#[cfg(fuzzing)]
pub(crate) use challenge::parse as parse_challenge;

/// What was learned about who asks, per server and scope. Failures are not kept.
#[derive(Default)]
pub(super) struct Tokens {
    slots: Mutex<HashMap<(String, Url, Scopes), Slot>>,
}

/// Whoever holds the lock is the one that asks for a new token; the others wait for it.
type Slot = Arc<tokio::sync::Mutex<Option<Login>>>;

/// An answered challenge.
struct Login {
    challenge: Challenge,
    token: Token,
}

impl Tokens {
    /// What to send with a request, if a challenge was answered before. A token that is about to end is renewed.
    pub(super) async fn current(&self, server: &Server, scopes: &Scopes) -> Result<Option<HeaderValue>> {
        let slot = self.slot(server, scopes);
        let mut slot = slot.lock().await;
        let Some(login) = slot.as_ref() else {
            return Ok(None);
        };
        if let Some(authorization) = login.token.valid() {
            return Ok(Some(authorization));
        }
        let challenge = login.challenge.clone();
        *slot = None;
        let login = answer(server, scopes, &[challenge]).await?;
        let authorization = login.as_ref().map(|login| login.token.authorization());
        *slot = login;
        Ok(authorization)
    }

    /// Answers the challenge of a 401. `None` if nothing can be said to it.
    ///
    /// `used` is what the refused request was sent with: if somebody else has something newer, that is the answer.
    pub(super) async fn renew(
        &self,
        server: &Server,
        scopes: &Scopes,
        used: Option<&HeaderValue>,
        refusal: &HeaderMap,
    ) -> Result<Option<HeaderValue>> {
        let slot = self.slot(server, scopes);
        let mut slot = slot.lock().await;
        if let Some(current) = slot.as_ref().and_then(|login| login.token.valid())
            && Some(&current) != used
        {
            return Ok(Some(current));
        }
        *slot = None;
        let headers = refusal.get_all(WWW_AUTHENTICATE).iter().filter_map(|header| header.to_str().ok());
        let challenges: Vec<_> = headers.flat_map(challenge::parse).collect();
        let login = answer(server, scopes, &challenges).await?;
        // What was refused a moment ago is refused again.
        let login = login.filter(|login| Some(&login.token.authorization()) != used);
        let authorization = login.as_ref().map(|login| login.token.authorization());
        *slot = login;
        Ok(authorization)
    }

    fn slot(&self, server: &Server, scopes: &Scopes) -> Slot {
        let key = (server.endpoint.name(), server.endpoint.url.clone(), scopes.clone());
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(key).or_default().clone()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

/// Says who asks, in the best of the ways that the server takes.
async fn answer(server: &Server, scopes: &Scopes, challenges: &[Challenge]) -> Result<Option<Login>> {
    let find = |scheme| challenges.iter().find(|challenge| challenge.scheme == scheme);
    let (bearer, basic) = (find("bearer"), find("basic"));
    if bearer.or(basic).is_none() {
        return Ok(None);
    }
    let credential = credential(server, scopes).await?;
    let (challenge, token) = match (bearer, basic, credential) {
        (Some(bearer), _, Some(Credential::AccessToken(token))) => (bearer, Token::given(&token)?),
        (Some(bearer), _, credential) => (bearer, token::ask(server, scopes, bearer, credential).await?),
        (None, Some(basic), Some(Credential::Password { user, password })) => {
            (basic, Token::basic(&user, &password))
        }
        _ => return Ok(None),
    };
    Ok(Some(Login { challenge: challenge.clone(), token }))
}

/// Who to be at this server: what the settings say, else what the caller's store of credentials says.
async fn credential(server: &Server, scopes: &Scopes) -> Result<Option<Credential>> {
    let (settings, name) = (&server.inner.settings, server.endpoint.name());
    if let Some(known) = settings.known.get(&name) {
        return Ok(Some(known.clone()));
    }
    match &settings.credentials {
        Some(credentials) => credentials.find(&name, scopes.repository()).await,
        None => Ok(None),
    }
}
