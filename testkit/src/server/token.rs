//! Who may come in, and tokens for those who may.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::{Instant, SystemTime},
};

use axum::http::{Method, StatusCode, header};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{
    answer::Answer,
    call::{self, Call},
};
use crate::state::State;

/// The tokens that were given out.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    good: BTreeMap<String, Token>,
    /// Identity tokens, which live until the registry is dropped.
    refresh: BTreeSet<String>,
    /// Given out so far, the revoked ones too.
    count: usize,
}

impl Tokens {
    /// None that was given out until now is good any more.
    pub(crate) fn revoke(&mut self) {
        self.good.clear();
    }

    fn give(&mut self, kind: &str, host: &str) -> String {
        let port = host.rsplit(':').next().expect("splitting gives at least one part");
        self.count += 1;
        // With the port, so that no other registry takes it by mistake.
        format!("{kind}-{port}-{}", self.count)
    }

    /// Whether this token allows at least what this scope says.
    pub(crate) fn allow(&self, token: &str, scope: &str) -> bool {
        self.good.get(token).is_some_and(|it| it.is_alive() && it.covers(scope))
    }
}

#[derive(Debug)]
struct Token {
    /// Each one as `TYPE:NAME:ACTION,…`.
    scopes: Vec<String>,
    until: Instant,
}

impl Token {
    fn is_alive(&self) -> bool {
        Instant::now() < self.until
    }

    fn covers(&self, wanted: &str) -> bool {
        let (resource, actions) = wanted.rsplit_once(':').expect("a scope has two colons");
        let granted = self.scopes.iter().filter_map(|it| it.rsplit_once(':'));
        let granted: Vec<_> =
            granted.filter(|(it, _)| *it == resource).flat_map(|(_, actions)| actions.split(',')).collect();
        actions.split(',').all(|action| granted.contains(&action))
    }
}

/// The 401 for whoever has not shown what this registry asks for. `wanted` are scopes: the first one is needed,
/// the others are named in the challenge.
pub(crate) fn refuse(call: &Call, wanted: &[String]) -> Option<Answer> {
    let state = &*call.state;
    if !state.settings.token {
        return refuse_password(call);
    }
    let token = call.authorization("Bearer ");
    let tokens = state.tokens();
    let good = token.and_then(|token| tokens.good.get(token)).filter(|it| it.is_alive());
    if good.is_some_and(|it| wanted.first().is_none_or(|scope| it.covers(scope))) {
        return None;
    }
    let realm = state.settings.realm.clone().unwrap_or_else(|| format!("{}/token", state.url()));
    let mut challenge = format!("Bearer realm=\"{realm}\",service=\"testkit\"");
    if !wanted.is_empty() {
        challenge += &format!(",scope=\"{}\"", wanted.join(" "));
    }
    match (token, good) {
        (None, _) => {}
        (Some(_), None) => challenge += ",error=\"invalid_token\"",
        (Some(_), Some(_)) => challenge += ",error=\"insufficient_scope\"",
    }
    Some(unauthorized(&challenge))
}

/// Gives a token: to a `GET` with a query, or to a `POST` with a form as OAuth 2 has it.
pub(crate) async fn give(call: &mut Call) -> io::Result<Answer> {
    match call.method {
        Method::GET => Ok(give_for_query(call)),
        Method::POST => give_for_form(call).await,
        _ => Ok(Answer::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "no such method here")),
    }
}

fn give_for_query(call: &Call) -> Answer {
    let settings = &call.state.settings;
    let is_anonymous = !call.headers.contains_key(header::AUTHORIZATION);
    let is_closed = settings.password.is_some() || settings.identity_token.is_some();
    let is_limited = is_closed && is_anonymous && settings.public;
    if is_closed && !is_limited && !has_password(call) {
        return unauthorized(BASIC);
    }
    let mut scopes = scopes(&call.query);
    if is_limited {
        scopes.retain(|scope| scope.starts_with("repository:"));
        for scope in &mut scopes {
            let (resource, _) = scope.rsplit_once(':').expect("what starts with `repository:` has a colon");
            *scope = format!("{resource}:pull");
        }
    }
    let is_offline = call.parameter("offline_token") == Some("true");
    token(&call.state, scopes, is_offline && !is_anonymous)
}

async fn give_for_form(call: &mut Call) -> io::Result<Answer> {
    let form = call::pairs(&call.body.all().await?);
    call.note_form(&form);
    let field = |name| call::value(&form, name);
    let settings = &call.state.settings;
    let is_form = call.header(header::CONTENT_TYPE) == Some("application/x-www-form-urlencoded");
    if !is_form || field("service").is_none() || field("client_id").is_none() {
        return Ok(bad_grant(StatusCode::BAD_REQUEST, "invalid_request"));
    }
    let is_granted = match field("grant_type") {
        Some("password") => match (&settings.password, field("username"), field("password")) {
            (Some((user, right)), Some(name), Some(given)) => name == user && given == right,
            _ => false,
        },
        Some("refresh_token") => field("refresh_token").is_some_and(|it| {
            settings.identity_token.as_deref() == Some(it) || call.state.tokens().refresh.contains(it)
        }),
        _ => return Ok(bad_grant(StatusCode::BAD_REQUEST, "unsupported_grant_type")),
    };
    if !is_granted {
        return Ok(bad_grant(StatusCode::UNAUTHORIZED, "invalid_grant"));
    }
    Ok(token(&call.state, scopes(&form), field("access_type") == Some("offline")))
}

fn bad_grant(status: StatusCode, error: &str) -> Answer {
    Answer::json(status, &json!({ "error": error }))
}

/// The scopes in a query or a form: one or more in each `scope`.
fn scopes(pairs: &[(String, String)]) -> Vec<String> {
    let scopes = pairs.iter().filter(|(name, _)| name == "scope");
    scopes.flat_map(|(_, value)| value.split_whitespace()).map(str::to_owned).collect()
}

/// A new token, and an identity token for later if that is wanted.
fn token(state: &State, scopes: Vec<String>, is_offline: bool) -> Answer {
    let settings = &state.settings;
    let mut body = json!({});
    let mut tokens = state.tokens();
    let token = tokens.give("token", &state.host);
    for field in ["token", "access_token"] {
        if settings.token_field.as_deref().is_none_or(|it| it == field) {
            body[field] = json!(token);
        }
    }
    if !settings.without_expires_in {
        body["expires_in"] = json!(settings.token_lifetime.as_secs());
        body["issued_at"] = json!(humantime::format_rfc3339_seconds(SystemTime::now()).to_string());
    }
    if is_offline {
        let refresh = tokens.give("refresh", &state.host);
        body["refresh_token"] = json!(refresh);
        tokens.refresh.insert(refresh);
    }
    tokens.good.insert(token, Token { scopes, until: Instant::now() + settings.token_lifetime });
    Answer::json(StatusCode::OK, &body)
}

const BASIC: &str = "Basic realm=\"testkit\"";

fn refuse_password(call: &Call) -> Option<Answer> {
    (call.state.settings.password.is_some() && !has_password(call)).then(|| unauthorized(BASIC))
}

fn has_password(call: &Call) -> bool {
    let right = call.state.settings.password.as_ref();
    right.is_some_and(|(user, password)| {
        call.authorization("Basic ") == Some(&*STANDARD.encode(format!("{user}:{password}")))
    })
}

fn unauthorized(challenge: &str) -> Answer {
    Answer::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required")
        .header("www-authenticate", challenge)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{ImageBuilder, Registry, RegistryBuilder, http};

    const APP: &str = "/v2/app/manifests/latest";
    const SCOPE: &str = "scope=repository:app:pull";

    async fn closed(builder: RegistryBuilder) -> Registry {
        let registry = builder.start().await;
        registry.push(&ImageBuilder::new().build(), "app", "latest");
        registry
    }

    /// The status and the challenge for a token.
    async fn show(registry: &Registry, token: &str) -> (u16, String) {
        let header = [("authorization", &*format!("Bearer {token}"))];
        let answer = http::send(&registry.host(), "GET", APP, &header, b"").await;
        (answer.status, answer.header("www-authenticate").unwrap_or_default().to_owned())
    }

    /// A token for what the query says.
    async fn token(host: &str, query: &str) -> String {
        let answer = http::json(&http::get(host, &format!("/token?service=testkit&{query}")).await);
        answer["token"].as_str().expect("it has a token").to_owned()
    }

    #[tokio::test]
    async fn a_token_opens_the_repository_that_it_was_asked_for() {
        let registry = closed(Registry::builder().token_auth()).await;
        let host = registry.host();
        let refused = http::get(&host, APP).await;
        let challenge =
            format!("Bearer realm=\"http://{host}/token\",service=\"testkit\",scope=\"repository:app:pull\"");
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(&*challenge)));

        for (query, status, error) in [
            ("scope=repository%3Aapp%3Apull", 200, None),
            ("scope=registry:catalog:*&scope=repository:app:pull,push", 200, None),
            ("scope=repository:a:pull+repository:app:pull", 200, None),
            ("scope=repository:other:pull", 401, Some("insufficient_scope")),
            ("scope=repository:app:push", 401, Some("insufficient_scope")),
        ] {
            let answer = show(&registry, &token(&host, query).await).await;
            let told = error.map(|error| format!("{challenge},error=\"{error}\""));
            assert_eq!(answer, (status, told.unwrap_or_default()), "{query}");
        }
        let (status, told) = show(&registry, "invented").await;
        assert_eq!((status, told), (401, format!("{challenge},error=\"invalid_token\"")));
    }

    #[tokio::test]
    async fn a_password_is_asked_for() {
        let basic = Registry::builder().password("user", "secret").start().await;
        let token = Registry::builder().token_auth().password("user", "secret").start().await;
        for (registry, path) in [(&basic, "/v2/"), (&token, "/token?scope=repository:app:pull")] {
            let anonymous = http::get(&registry.host(), path).await;
            // `user:secret` and `user:wrong` in base 64.
            let right = [("authorization", "Basic dXNlcjpzZWNyZXQ=")];
            let wrong = [("authorization", "Basic dXNlcjp3cm9uZw==")];

            assert_eq!(anonymous.status, 401, "{path}");
            assert_eq!(anonymous.header("www-authenticate"), Some("Basic realm=\"testkit\""));
            assert_eq!(http::send(&registry.host(), "GET", path, &right, b"").await.status, 200, "{path}");
            assert_eq!(http::send(&registry.host(), "GET", path, &wrong, b"").await.status, 401, "{path}");
        }
    }

    #[tokio::test]
    async fn anybody_may_pull_from_a_public_registry_and_nothing_more() {
        let registry = closed(Registry::builder().token_auth().password("user", "secret").public()).await;

        let token = token(&registry.host(), "scope=repository:app:pull,push").await;

        assert_eq!(show(&registry, &token).await.0, 200);
        let header = [("authorization", &*format!("Bearer {token}"))];
        let push = http::send(&registry.host(), "PUT", APP, &header, b"{}").await;
        assert_eq!(push.status, 401);
        let challenge = push.header("www-authenticate").expect("a 401 has a challenge");
        assert!(challenge.contains("scope=\"repository:app:pull,push\""), "{challenge}");
    }

    #[tokio::test]
    async fn a_token_is_refused_after_its_life() {
        let lifetime = Duration::from_millis(1500);
        let registry = closed(Registry::builder().token_auth().token_lifetime(lifetime)).await;
        let answer = http::json(&http::get(&registry.host(), &format!("/token?{SCOPE}")).await);
        let token = answer["token"].as_str().expect("it has a token");

        let before = show(&registry, token).await.0;
        tokio::time::sleep(lifetime).await;
        let after = show(&registry, token).await.0;

        assert_eq!((before, after), (200, 401));
        assert_eq!(answer["expires_in"], 1);
        assert!(answer["issued_at"].as_str().is_some_and(|it| it.ends_with('Z')), "{answer}");
    }

    #[tokio::test]
    async fn revoked_tokens_are_refused_and_new_ones_are_not() {
        let registry = closed(Registry::builder().token_auth()).await;
        let old = token(&registry.host(), SCOPE).await;

        registry.revoke_tokens();

        let new = token(&registry.host(), SCOPE).await;
        assert_eq!((show(&registry, &old).await.0, show(&registry, &new).await.0), (401, 200));
        assert_ne!(old, new);
    }

    #[tokio::test]
    async fn a_token_is_in_the_fields_that_were_asked_for() {
        for (field, other) in [("token", "access_token"), ("access_token", "token")] {
            let registry = Registry::builder().token_auth().token_field(field).without_expires_in();
            let registry = registry.start().await;

            let answer = http::json(&http::get(&registry.host(), "/token").await);

            assert!(answer[field].is_string() && answer.get(other).is_none(), "{answer}");
            assert!(answer.get("expires_in").is_none() && answer.get("issued_at").is_none(), "{answer}");
        }
    }

    #[tokio::test]
    async fn another_registry_can_give_the_tokens() {
        let server = Registry::builder().token_auth().start().await;
        let registry = closed(Registry::builder().token_server(&server)).await;
        let stranger = Registry::builder().token_auth().start().await;

        let refused = http::get(&registry.host(), APP).await;
        let good = token(&server.host(), SCOPE).await;
        let bad = token(&stranger.host(), SCOPE).await;

        let challenge = refused.header("www-authenticate").expect("a 401 has a challenge");
        assert!(challenge.contains(&format!("realm=\"http://{}/token\"", server.host())), "{challenge}");
        assert_eq!((show(&registry, &good).await.0, show(&registry, &bad).await.0), (200, 401));
        server.revoke_tokens();
        assert_eq!(show(&registry, &good).await.0, 401);
    }

    #[tokio::test]
    async fn a_realm_may_be_anywhere() {
        let registry = Registry::builder().token_realm("https://auth.example/t?x=1").start().await;

        let refused = http::get(&registry.host(), "/v2/").await;

        let challenge = "Bearer realm=\"https://auth.example/t?x=1\",service=\"testkit\"";
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(challenge)));
    }

    #[tokio::test]
    async fn a_form_gets_a_token_for_a_password_or_an_identity_token() {
        let builder = Registry::builder().token_auth().password("user", "secret").identity_token("identity");
        let registry = closed(builder).await;
        let common = "service=testkit&client_id=test&scope=repository%3Aapp%3Apull";
        for (form, status, error) in [
            ("grant_type=password&username=user&password=secret", 200, None),
            ("grant_type=password&username=user&password=wrong", 401, Some("invalid_grant")),
            ("grant_type=refresh_token&refresh_token=identity", 200, None),
            ("grant_type=refresh_token&refresh_token=secret", 401, Some("invalid_grant")),
            ("grant_type=magic", 400, Some("unsupported_grant_type")),
        ] {
            let answer = http::form(&registry.host(), "/token", &format!("{common}&{form}")).await;
            assert_eq!(answer.status, status, "{form}");
            let answer = http::json(&answer);
            assert_eq!(answer["error"].as_str(), error, "{form}");
            if let Some(token) = answer["access_token"].as_str() {
                assert_eq!(show(&registry, token).await.0, 200, "{form}");
            }
        }
        let answer = http::form(&registry.host(), "/token", "grant_type=password").await;
        assert_eq!((answer.status, http::json(&answer)["error"].as_str()), (400, Some("invalid_request")));
        let log = registry.requests();
        assert_eq!((&*log[0].method, log[0].parameter("grant_type")), ("POST", Some("password")));
        // `<token>:identity` in base 64.
        let header = [("authorization", "Basic PHRva2VuPjppZGVudGl0eQ==")];
        assert_eq!(http::send(&registry.host(), "GET", "/token", &header, b"").await.status, 401);
    }

    #[tokio::test]
    async fn whoever_comes_again_gets_an_identity_token() {
        let registry = closed(Registry::builder().token_auth().password("user", "secret")).await;
        let common = "service=testkit&client_id=test&access_type=offline";
        let form = format!("{common}&grant_type=password&username=user&password=secret");
        let first = http::json(&http::form(&registry.host(), "/token", &form).await);
        let identity = first["refresh_token"].as_str().expect("it was asked for");

        let form = format!("{common}&grant_type=refresh_token&refresh_token={identity}");
        let answer = http::form(&registry.host(), "/token", &form).await;

        assert_eq!(answer.status, 200);
    }
}
