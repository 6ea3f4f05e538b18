//! What is secret is in no error and in no log.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{StreamExt, stream};
use tracing_subscriber::{filter::LevelFilter, fmt::MakeWriter};
use windlass_remotes::{
    Resolver,
    credentials::{Credential, Secret},
};
use windlass_testkit::{Fault, Image, Registry as Server, RegistryBuilder};

use crate::support::{
    Config, Outcome, Script, app, attempts, builder, built, latest, layer, named, push, reply,
};

const PASSWORD: &str = "hunter2-password";
const IDENTITY: &str = "identity-token-5f3a";
const ACCESS: &str = "access-token-77aa";
const HEADER: &str = "header-value-b1ue";
const PROXY: &str = "proxy-password-9c";
/// What signed URLs of the test registry have, and what its tokens begin with.
const SIGNATURE: &str = "sig=signature-";
const TOKEN: &str = "Bearer token-";

/// All secrets, and the forms in which they are sent.
fn secrets() -> Vec<String> {
    let mut secrets: Vec<_> =
        [PASSWORD, IDENTITY, ACCESS, HEADER, PROXY, SIGNATURE, TOKEN].map(str::to_owned).into();
    // `user:hunter2-password` and `me:proxy-password-9c` in base 64.
    secrets.extend(["dXNlcjpodW50ZXIyLXBhc3N3b3Jk".to_owned(), "bWU6cHJveHktcGFzc3dvcmQtOWM".to_owned()]);
    secrets
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panics")).into_owned()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics").extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {}:: {}\n", record.level(), record.target(), record.args());
        self.0.lock().expect("nobody panics").extend(line.as_bytes());
    }

    fn flush(&self) {}
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

fn check(what: &str, text: &str) {
    for secret in secrets() {
        if let Some(at) = text.find(&secret) {
            let line = text[..at].rfind('\n').map_or(0, |at| at + 1);
            panic!("{what} has {secret}: {}", text[line..].lines().next().unwrap_or_default());
        }
    }
}

/// Neither the form for people nor the one for programmers.
fn check_error<T>(what: &str, outcome: Outcome<T>) {
    let Err(error) = outcome else { return };
    check(what, &format!("{error:?}"));
    let mut next: Option<&dyn std::error::Error> = Some(&*error);
    while let Some(error) = next {
        check(what, &format!("{error} {error:?}"));
        next = error.source();
    }
}

fn faults() -> Vec<Vec<Fault>> {
    let (every, token) = ("", "/token");
    vec![
        vec![],
        vec![Fault::status("/v2/", 500)],
        vec![Fault::status("/manifests/", 403), Fault::no_head("/manifests/")],
        vec![Fault::status(token, 401)],
        vec![Fault::status(token, 405).method("GET")],
        vec![Fault::status(token, 500)],
        vec![Fault::answer(token, 200, &[], "{}")],
        vec![Fault::answer(token, 200, &[], "<html>")],
        vec![Fault::hang_up(token)],
        vec![Fault::hang_up(every)],
        vec![Fault::hang_up("/blobs/")],
        vec![Fault::truncate_at("/blobs/", 30_000)],
        vec![Fault::truncate_at("/cdn/", 30_000)],
        vec![Fault::truncate_at("/cdn/", 0)],
        vec![Fault::hang_up("/cdn/")],
        vec![Fault::status("/cdn/", 403)],
        vec![Fault::status("/cdn/", 500)],
        vec![Fault::partial_without_range("/cdn/")],
        vec![Fault::huge_header("/cdn/", 4 << 20)],
        vec![Fault::wrong_content_range("/cdn/", "bytes 0-1/2")],
        vec![Fault::redirect("/cdn/", 307, "http://user:hunter2-password@127.0.0.1:1/x?sig=signature-x")],
        vec![Fault::redirect("/cdn/", 307, "ftp://user:hunter2-password@127.0.0.1:1/x?sig=signature-x")],
        vec![Fault::redirect("/cdn/", 307, "/x?sig=signature-x#sig=signature-x")],
        vec![Fault::stall("/cdn/", Duration::from_secs(60)).times(2)],
    ]
}

fn credentials() -> Vec<Credential> {
    vec![
        Credential::Password { user: "user".into(), password: Secret::new(PASSWORD) },
        Credential::IdentityToken(Secret::new(IDENTITY)),
        Credential::AccessToken(Secret::new(ACCESS)),
        Credential::AccessToken(Secret::new(format!("{ACCESS}\n"))),
    ]
}

async fn closed(image: &Image, builder: RegistryBuilder, token: bool) -> Server {
    let builder = builder.password("user", PASSWORD);
    let builder = if token { builder.token_auth().identity_token(IDENTITY) } else { builder };
    let server = builder.start().await;
    push(&server, image);
    server
}

/// One way to log in, and one thing that goes wrong.
async fn one_that_goes_wrong(image: &Image, faults: &[Fault], credential: Credential, token: bool) {
    let storage = Server::start().await;
    let server = closed(image, Server::builder(), token).await;
    server.redirect_blobs_to(&storage);
    for fault in faults {
        server.fault(fault.clone());
        storage.fault(fault.clone());
    }
    let text = format!("server = '{}'\n[header]\nx-secret = '{HEADER}'", server.url());
    let config = Config::new(&server.host(), &text);
    let what = format!("{faults:?} {credential:?}");
    let builder = builder()
        .idle_timeout(Duration::from_millis(300))
        .attempts(attempts(2))
        .retry_for(Duration::from_millis(300))
        .hosts(config.hosts())
        .credentials_from(BTreeMap::from([(server.host(), credential)]));
    check("the settings", &format!("{builder:?}"));
    let client = built(builder);

    check_error(&what, layer(&client, &server, image, 0).await);
    check("the client", &format!("{client:?}"));
}

/// All that goes wrong, in all ways to log in, and what else there may be secret.
async fn everything_that_goes_wrong() {
    let image = app();
    let cases = faults().into_iter().flat_map(|faults| {
        let both = |credential: Credential| [(credential.clone(), false), (credential, true)];
        credentials()
            .into_iter()
            .flat_map(both)
            .map(move |(credential, token)| (faults.clone(), credential, token))
    });
    let run = |(faults, credential, token): (Vec<_>, _, _)| {
        let image = &image;
        async move { one_that_goes_wrong(image, &faults, credential, token).await }
    };
    stream::iter(cases).map(run).buffer_unordered(16).for_each(|()| async {}).await;

    // HTTP/2 has a log of its own.
    let server = closed(&image, Server::builder().http2(), true).await;
    let text = format!("server = '{}'\nskip_verify = true\n[header]\nx-secret = '{HEADER}'", server.url());
    let config = Config::new(&server.host(), &text);
    let client = built(builder().hosts(config.hosts()).credentials(server.host(), "user", PASSWORD));
    layer(&client, &server, &image, 0).await.expect("the password is right");

    for (settings, proxy) in
        [("", "127.0.0.1:1"), ("skip_verify = true", "127.0.0.1:1"), ("", "nowhere.invalid:80")]
    {
        let server = closed(&image, Server::builder(), false).await;
        let config = Config::new(
            &server.host(),
            &format!("server = '{}'\n{settings}\nproxy = 'http://me:{PROXY}@{proxy}'", server.url()),
        );
        let client = built(builder().attempts(attempts(1)).hosts(config.hosts()));
        let outcome = client.resolve(&latest(&server)).await;
        assert!(outcome.is_err(), "there is no such proxy");
        check_error("a proxy that is not there", outcome.map_err(Into::into));
    }
    // A proxy that wants another password.
    let proxy = Script::start(|_| reply(407, &[("proxy-authenticate", "Basic realm=x")], b"")).await;
    for scheme in ["http", "https"] {
        let text = format!("server = '{scheme}://127.0.0.2:1'\nproxy = 'http://me:{PROXY}@{}'", proxy.host);
        let config = Config::new("registry.example", &text);
        let client = built(builder().attempts(attempts(1)).hosts(config.hosts()));
        let outcome = client.resolve(&named("registry.example", ":1")).await;
        assert!(outcome.is_err(), "the proxy lets nobody through");
        check_error("a proxy that refuses", outcome.map_err(Into::into));
    }
    // Files that are broken where a secret is.
    for text in [
        format!("proxy = 'ftp://me:{PROXY}@127.0.0.1'"),
        format!("proxy = 'me:{PROXY}@127.0.0.1'"),
        format!("server = 'https://me:{PASSWORD}@127.0.0.1'"),
        format!("[header]\n'x: {HEADER}' = 'x'"),
        format!("[header]\nx-secret = \"{HEADER}\\u0000\""),
        format!("[header]\nx-secret = '{HEADER}"),
        format!("[header]\nx-secret = 7 # {HEADER}"),
    ] {
        let config = Config::new("registry.example", &text);
        let outcome = config.client().resolve(&named("registry.example", ":1")).await;
        assert!(outcome.is_err(), "{text}");
        check_error("a broken file", outcome.map_err(Into::into));
    }
}

#[test]
fn secrets_are_in_no_error_and_in_no_log() {
    let log = Log::default();
    // Two kinds of logs: ours and that of HTTP/2, and that of reqwest.
    log::set_boxed_logger(Box::new(log.clone())).expect("nobody else in this process has a logger");
    log::set_max_level(log::LevelFilter::Trace);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::TRACE)
        .with_writer(log.clone())
        .with_ansi(false)
        .finish();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be made");

    tracing::subscriber::with_default(subscriber, || runtime.block_on(everything_that_goes_wrong()));

    let text = log.text();
    for target in ["windlass_remotes", "reqwest", "h2"] {
        assert!(text.contains(&format!(" {target}::")), "nothing is logged for {target}");
    }
    check("the log", &text);
}
