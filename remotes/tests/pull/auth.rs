//! Who asks, and when that is said.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, future::join_all};
use windlass_remotes::{
    Builder, Error, Resolver,
    credentials::{Credential, Credentials, Secret},
};
use windlass_testkit::{Fault, Image, Registry as Server, RegistryBuilder};

use crate::support::{
    Script, app, attempts, builder, built, bytes, chain, client, count, fetcher, headers, latest, layer,
    many, named, push, read, reply,
};

/// A host and a repository.
type Question = (String, Option<String>);

/// Says what it was told to say, and remembers what it was asked.
#[derive(Clone, Debug)]
struct Asked {
    answer: Option<Credential>,
    log: Arc<Mutex<Vec<Question>>>,
}

impl Asked {
    fn new(answer: impl Into<Option<Credential>>) -> Self {
        Self { answer: answer.into(), log: Arc::default() }
    }

    fn log(&self) -> Vec<Question> {
        self.log.lock().expect("nobody panics").clone()
    }
}

#[async_trait]
impl Credentials for Asked {
    async fn find(
        &self,
        host: &str,
        repository: Option<&str>,
    ) -> windlass_remotes::Result<Option<Credential>> {
        let asked = (host.to_owned(), repository.map(str::to_owned));
        self.log.lock().expect("nobody panics").push(asked);
        Ok(self.answer.clone())
    }
}

fn password(password: &str) -> Credential {
    Credential::Password { user: "user".into(), password: Secret::new(password) }
}

fn with(credential: impl Into<Option<Credential>>) -> Builder {
    builder().credentials_from(Asked::new(credential))
}

async fn closed(image: &Image, server: RegistryBuilder) -> Server {
    let server = server.start().await;
    push(&server, image);
    server
}

fn tokens(server: &Server) -> Vec<windlass_testkit::Request> {
    server.requests().into_iter().filter(|request| request.path.starts_with("/token")).collect()
}

#[tokio::test]
async fn an_anonymous_token_is_got_once_and_used_for_all() {
    let image = app();
    let server = closed(&image, Server::builder().token_auth()).await;

    let came = layer(&client(), &server, &image, 0).await.expect("a token opens it");

    assert!(came == bytes(&image));
    let tokens = tokens(&server);
    let [request] = tokens.as_slice() else { panic!("{tokens:?}") };
    assert_eq!((&*request.method, request.headers.get("authorization")), ("GET", None));
    assert_eq!(request.parameter("scope"), Some("repository:library/app:pull"));
    assert_eq!(request.parameter("service"), Some("testkit"));
}

#[tokio::test]
async fn every_way_to_say_who_one_is_opens_what_is_closed() {
    let image = app();
    let identity = || Credential::IdentityToken(Secret::new("identity"));
    let both = || Server::builder().token_auth().password("user", "hunter2");
    let get = |status| vec![Fault::status("/token", status).method("GET")];
    for (server, credential, faults, asked) in [
        (Server::builder().password("user", "hunter2"), password("hunter2"), vec![], &[][..]),
        (both(), password("hunter2"), vec![], &[("GET", None)]),
        (both().token_field("token"), password("hunter2"), vec![], &[("GET", None)]),
        (both().token_field("access_token"), password("hunter2"), vec![], &[("GET", None)]),
        (both().without_expires_in(), password("hunter2"), vec![], &[("GET", None)]),
        (both(), password("hunter2"), get(404), &[("GET", None), ("POST", Some("password"))]),
        (both(), password("hunter2"), get(405), &[("GET", None), ("POST", Some("password"))]),
        (both().identity_token("identity"), identity(), vec![], &[("POST", Some("refresh_token"))]),
        (
            Server::builder().token_auth().identity_token("identity"),
            identity(),
            vec![],
            &[("POST", Some("refresh_token"))],
        ),
    ] {
        let server = closed(&image, server).await;
        for fault in faults {
            server.fault(fault);
        }

        let came = layer(&built(with(credential.clone())), &server, &image, 0).await;

        assert!(came.expect("it is open to them") == bytes(&image), "{credential:?}");
        let tokens = tokens(&server);
        let told: Vec<_> = tokens.iter().map(|it| (it.method.as_str(), it.parameter("grant_type"))).collect();
        assert_eq!(told, asked, "{credential:?}");
    }
}

#[tokio::test]
async fn an_access_token_is_sent_as_it_is() {
    let image = app();
    let server = closed(&image, Server::builder().token_auth()).await;
    // Somebody else got it.
    layer(&client(), &server, &image, 0).await.expect("a token opens it");
    let authorization = headers(&server, "/manifests/", "authorization").remove(0);
    let token = authorization.strip_prefix("Bearer ").expect("it is a token").to_owned();
    let before = tokens(&server).len();

    let client = built(with(Credential::AccessToken(Secret::new(token))));
    let came = layer(&client, &server, &image, 0).await.expect("the token is good");

    assert!(came == bytes(&image));
    assert_eq!(tokens(&server).len(), before);
}

#[tokio::test]
async fn a_wrong_password_is_refused_after_one_attempt_at_each_door() {
    let image = app();
    for (server, doors) in [
        (Server::builder().password("user", "hunter2"), "/manifests/"),
        (Server::builder().token_auth().password("user", "hunter2"), "/token"),
    ] {
        let server = closed(&image, server).await;

        let error = built(with(password("wrong"))).resolve(&latest(&server)).await.expect_err("it is wrong");

        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        assert!(error.to_string().ends_with(": UNAUTHORIZED: authentication required"), "{error}");
        let shown = headers(&server, doors, "authorization").len();
        assert!(shown <= 2, "{shown} attempts, once for each of HEAD and GET at most");
    }
}

#[tokio::test]
async fn many_fetches_at_once_ask_for_one_token() {
    let image = app();
    let server = closed(&image, Server::builder().token_auth()).await;
    let client = built(builder().in_flight_per_host(many(32)));
    let fetcher = fetcher(&client, &latest(&server)).await;
    server.revoke_tokens();
    server.fault(Fault::delay("/token", Duration::from_millis(300)));
    let node = &image.layers()[0];
    let before = tokens(&server).len();

    let came = join_all((0..32).map(|_| read(&*fetcher, node, 0))).await;

    assert!(came.into_iter().all(|came| came.expect("a token opens it") == bytes(&image)));
    assert_eq!(tokens(&server).len(), before + 1);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let image = app();
    let lifetime = Duration::from_secs(2);
    let server = closed(&image, Server::builder().token_auth().token_lifetime(lifetime)).await;
    let fetcher = fetcher(&client(), &latest(&server)).await;
    for round in 1..=2 {
        tokio::time::sleep(lifetime + Duration::from_millis(200)).await;

        read(&*fetcher, &image.layers()[0], 0).await.expect("another token opens it");

        // Nothing was sent with the one that had ended.
        assert_eq!((tokens(&server).len(), count(&server, "GET", "/blobs/")), (round + 1, round));
    }
}

#[tokio::test]
async fn a_failure_is_not_remembered() {
    let image = app();
    let server = closed(&image, Server::builder().token_auth().password("user", "hunter2")).await;
    let client = built(with(password("hunter2")).attempts(attempts(3)));

    server.fault(Fault::status("/token", 500).once());
    client.resolve(&latest(&server)).await.expect("the token server was tried again");
    server.revoke_tokens();
    server.fault(Fault::status("/token", 401).times(2));
    client.resolve(&latest(&server)).await.expect_err("the token server refuses HEAD's and GET's");
    client.resolve(&latest(&server)).await.expect("the token server does not refuse any more");
}

#[tokio::test]
async fn a_token_that_is_refused_is_replaced_once() {
    let image = app();
    let server = closed(&image, Server::builder().token_auth()).await;
    let client = client();
    let fetcher = fetcher(&client, &latest(&server)).await;
    server.revoke_tokens();

    read(&*fetcher, &image.layers()[0], 0).await.expect("another token opens it");
    assert_eq!(tokens(&server).len(), 2);

    // A registry that likes no token.
    server.fault(Fault::answer("/blobs/", 401, &[("www-authenticate", &challenge(&server))], ""));
    let error = read(&*fetcher, &image.layers()[0], 0).await.expect_err("it is refused");
    assert!(matches!(error.downcast_ref(), Some(Error::Unauthorized { .. })), "{error:?}");
    assert_eq!(tokens(&server).len(), 3);
}

fn challenge(server: &Server) -> String {
    format!(
        "Bearer realm=\"{}/token\",service=\"testkit\",scope=\"repository:library/app:pull\"",
        server.url()
    )
}

#[tokio::test]
async fn a_body_goes_on_with_another_token() {
    let image = app();
    let server = closed(&image, Server::builder().token_auth()).await;
    server.fault(Fault::truncate_at("/blobs/", 20_000).once());
    server.fault(Fault::slow("/blobs/", 40_000).once());
    let fetcher = fetcher(&client(), &latest(&server)).await;
    let mut body = fetcher.fetch(&image.layers()[0], 0).await.expect("it is there");
    let first = body.next().await.expect("there is more").expect("it begins well");

    server.revoke_tokens();
    let rest: Vec<_> = body.try_collect().await.expect("the rest comes with another token");

    assert!([vec![first], rest].concat().concat() == bytes(&image));
    assert_eq!(tokens(&server).len(), 2);
}

#[tokio::test]
async fn tokens_may_come_from_another_host() {
    let image = app();
    let giver = Server::builder().token_auth().password("user", "hunter2").start().await;
    let server = closed(&image, Server::builder().token_server(&giver)).await;
    let asked = Asked::new(password("hunter2"));

    layer(&built(builder().credentials_from(asked.clone())), &server, &image, 0)
        .await
        .expect("a token opens it");

    assert_eq!(asked.log(), [(server.host(), Some("library/app".to_owned()))], "not for the giver");
    assert_eq!(headers(&giver, "/token", "authorization").len(), 1);
    assert_eq!(tokens(&server).len(), 0);
}

#[tokio::test]
async fn a_secret_is_not_sent_over_an_open_line_that_nobody_declared() {
    let image = app();
    for (realm, plain, why) in [
        ("http://192.0.2.1/token", None, "is not on TLS"),
        ("http://192.0.2.1:5000/token", Some("192.0.2.1"), "is not on TLS"),
        ("http://auth.example/token", Some("other.example"), "is not on TLS"),
        ("ftp://127.0.0.1/token", None, "is not on TLS"),
        ("not a url", None, "its token realm is not a URL"),
        ("/token", None, "its token realm is not a URL"),
        ("", None, "its token realm is not a URL"),
    ] {
        let server = closed(&image, Server::builder().token_realm(realm)).await;
        let builder = plain.iter().fold(with(password("hunter2")), |it, host| it.plain_http(*host));

        let error = built(builder).resolve(&latest(&server)).await.expect_err("it is not safe");

        assert!(matches!(error, Error::BadResponse { .. }), "{realm}: {error:?}");
        assert!(error.to_string().contains(why), "{realm}: {error}");
    }
}

#[tokio::test]
async fn a_registry_on_tls_has_no_token_server_off_it() {
    let image = app();
    let giver = Server::builder().token_auth().start().await;
    let server = closed(&image, Server::builder().tls().token_server(&giver)).await;
    let text = format!("server = '{}'\nskip_verify = true", server.url());
    let config = crate::support::Config::new(&server.host(), &text);

    let error = config.client().resolve(&latest(&server)).await.expect_err("it is not safe");

    assert!(error.to_string().contains("is not on TLS"), "{error}");
    assert_eq!(giver.requests().len(), 0);
}

#[tokio::test]
async fn nobody_is_asked_who_to_be_before_a_registry_wants_to_know() {
    let image = app();
    let open = closed(&image, Server::builder()).await;
    let shut = closed(&image, Server::builder().password("user", "hunter2")).await;
    let asked = Asked::new(password("hunter2"));
    let client = built(builder().credentials_from(asked.clone()));

    layer(&client, &open, &image, 0).await.expect("it is open");
    assert_eq!((asked.log(), headers(&open, "", "authorization").len()), (vec![], 0));

    layer(&client, &shut, &image, 0).await.expect("the password is right");
    assert_eq!(asked.log(), [(shut.host(), Some("library/app".to_owned()))]);
}

#[tokio::test]
async fn a_credential_is_for_one_host_only() {
    let image = app();
    let first = closed(&image, Server::builder().password("user", "hunter2")).await;
    let second = closed(&image, Server::builder().password("user", "hunter2")).await;
    let known = BTreeMap::from([(first.host(), password("hunter2"))]);
    let client = built(builder().credentials_from(known).credentials("other.example", "user", "hunter2"));

    client.resolve(&latest(&first)).await.expect("the password is right");
    client.resolve(&latest(&second)).await.expect_err("it is for another host");

    assert_eq!(headers(&second, "", "authorization").len(), 0);
}

#[tokio::test]
async fn a_token_is_asked_for_with_the_scopes_of_the_challenge_and_of_the_operation() {
    let giver = Server::builder().token_auth().start().await;
    let realm = format!("{}/token", giver.url());
    let script = Script::start(move |seen| match seen.header("authorization") {
        Some(_) => reply(200, &[], br#"{"layers":[]}"#),
        None => {
            let challenge = format!(r#"Bearer realm="{realm}",scope="repository:base:pull other""#);
            reply(401, &[("www-authenticate", "Negotiate"), ("WWW-Authenticate", &challenge)], b"")
        }
    })
    .await;

    client().resolve(&named(&script.host, ":1")).await.expect("a token opens it");

    let tokens = tokens(&giver);
    let scopes: Vec<_> = tokens[0].query.iter().filter(|(name, _)| name == "scope").collect();
    let scopes: Vec<_> = scopes.iter().map(|(_, value)| value.as_str()).collect();
    assert_eq!(scopes, ["repository:base:pull", "repository:library/app:pull"]);
}

#[tokio::test]
async fn a_challenge_that_cannot_be_answered_is_a_refusal() {
    let image = app();
    for challenge in ["", "Negotiate", "Digest realm=\"x\"", "Basic", "\"", "Bearer"] {
        let server = closed(&image, Server::builder()).await;
        server.fault(Fault::answer("/manifests/", 401, &[("www-authenticate", challenge)], ""));

        let error = client().resolve(&latest(&server)).await.expect_err("it is closed");

        let good = match challenge {
            "Bearer" => matches!(error, Error::BadResponse { .. }),
            _ => matches!(error, Error::Unauthorized { .. }),
        };
        assert!(good, "{challenge}: {error:?}");
    }
}

#[tokio::test]
async fn what_a_token_server_says_is_bounded_and_understood() {
    let image = app();
    let huge = format!(r#"{{"token":"{}"}}"#, "x".repeat(2 << 20));
    for (status, body, why) in [
        (200, "<html>", "it is not a token"),
        (200, "{}", "it holds no token"),
        (200, r#"{"token":"a\nb"}"#, "its token cannot be a header"),
        (200, &*huge, "has more than 1048576 bytes"),
        (400, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#, "answered 400"),
        (403, r#"{"errors":[{"code":"DENIED","message":"no"}]}"#, "DENIED: no"),
    ] {
        let server = closed(&image, Server::builder().token_auth()).await;
        server.fault(Fault::answer("/token", status, &[], body));

        let error = client().resolve(&latest(&server)).await.expect_err("there is no token");

        let text = chain(&error);
        assert!(text.contains(why) && text.contains("/token"), "{status}: {text}");
        assert!(text.len() < 1000, "{} bytes", text.len());
    }
}
