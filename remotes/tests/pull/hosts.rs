//! Mirrors, and how servers are reached.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use tokio::net::{TcpListener, TcpStream};
use windlass_remotes::{
    Error, Resolver,
    credentials::{Credential, Secret},
};
use windlass_testkit::{Fault, Image, Registry as Server};

use crate::support::{
    Config, Gate, Proxy, Script, app, attempts, builder, built, bytes, chain, count, fetcher, headers,
    latest, layer, named, push, read, reply, serve, socket,
};

/// A mirror before a registry.
fn mirrored(server: &Server, mirror: &str, settings: &str) -> Config {
    Config::new(&server.host(), &format!("[host.'http://{mirror}']\n{settings}"))
}

/// A port that takes connections and never answers; beyond a full queue, it does not even take them.
async fn black_hole() -> (TcpListener, Vec<TcpStream>, String) {
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket can be made");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a port is free");
    let listener = socket.listen(1).expect("it is bound");
    let address = listener.local_addr().expect("it is bound");
    let mut queue = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(address)).await
    {
        queue.push(stream.expect("the queue takes it"));
    }
    (listener, queue, address.to_string())
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_told_for_whom_it_stands() {
    let image = app();
    let (server, mirror) = (serve(&image).await, serve(&image).await);
    let config = mirrored(&server, &mirror.host(), "");

    let came = layer(&config.client(), &server, &image, 0).await.expect("it is in the mirror");

    assert!(came == bytes(&image));
    assert_eq!((server.requests().len(), mirror.requests().len()), (0, 2));
    for request in mirror.requests() {
        assert_eq!(request.query, [("ns".to_owned(), server.host())], "{request:?}");
    }
}

#[tokio::test]
async fn a_registry_is_not_told_its_own_name() {
    let image = app();
    let server = serve(&image).await;
    let config = Config::new(&server.host(), &format!("server = '{0}'\n[host.'{0}']", server.url()));

    layer(&config.client(), &server, &image, 0).await.expect("it is there");

    assert!(server.requests().iter().all(|request| request.query.is_empty()));
}

#[tokio::test]
async fn whatever_is_wrong_with_a_mirror_the_registry_is_asked_next() {
    let image = app();
    for faults in [
        vec![Fault::status("", 404)],
        vec![Fault::status("", 500)],
        vec![Fault::status("", 401)],
        vec![Fault::status("", 403)],
        vec![Fault::status("", 400)],
        vec![Fault::hang_up("")],
        vec![Fault::redirect("", 307, "http://127.0.0.1:1/")],
        vec![Fault::no_head(""), Fault::wrong_content_type("", "text/html"), Fault::truncate_at("", 10)],
        vec![Fault::status("/blobs/", 404)],
        vec![Fault::status("/blobs/", 500)],
        vec![Fault::truncate_at("/blobs/", 0)],
        vec![Fault::truncate_at("/blobs/", 100).once(), Fault::status("/blobs/", 404)],
    ] {
        let (server, mirror) = (serve(&image).await, serve(&image).await);
        let config = mirrored(&server, &mirror.host(), "");
        for fault in &faults {
            mirror.fault(fault.clone());
        }

        let client = built(builder().hosts(config.hosts()).attempts(attempts(3)));
        let came = layer(&client, &server, &image, 0).await;

        assert!(came.unwrap_or_else(|error| panic!("{faults:?}: {error}")) == bytes(&image), "{faults:?}");
        assert!(!server.requests().is_empty(), "{faults:?}");
    }
}

#[tokio::test]
async fn a_mirror_that_is_gone_costs_one_time_out_and_not_one_for_each_blob() {
    let image = app();
    let server = serve(&image).await;
    let (listener, queue, host) = black_hole().await;
    let config = mirrored(&server, &host, "dial_timeout = '1s'");
    let started = Instant::now();

    let fetcher = fetcher(&config.client(), &latest(&server)).await;
    for _ in 0..20 {
        assert!(read(&*fetcher, &image.layers()[0], 0).await.expect("it is there") == bytes(&image));
    }

    let took = started.elapsed();
    assert!(took >= Duration::from_secs(1), "the mirror was tried: {took:?}");
    assert!(took < Duration::from_secs(10), "and not twenty times: {took:?}");
    drop((listener, queue));
}

#[tokio::test]
async fn a_mirror_that_dies_costs_one_time_out_even_if_it_was_good() {
    let image = app();
    let (server, mirror) = (serve(&image).await, serve(&image).await);
    let mut gate = Gate::to(&mirror).await;
    let config = mirrored(&server, &gate.host, "");
    let client = config.client();
    layer(&client, &server, &image, 0).await.expect("it is in the mirror");
    gate.close().await;
    let started = Instant::now();

    for _ in 0..5 {
        layer(&client, &server, &image, 0).await.expect("it is in the registry");
    }

    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(count(&server, "GET", "/blobs/"), 5);
}

#[tokio::test]
async fn what_the_registry_says_counts_and_not_what_its_dead_mirror_says() {
    let image = app();
    let (server, mirror) = (serve(&image).await, serve(&image).await);
    let mut gate = Gate::to(&mirror).await;
    gate.close().await;
    let config = mirrored(&server, &gate.host, "");
    let client = config.client();
    for _ in 0..2 {
        let error = client.resolve(&named(&server.host(), ":other")).await.expect_err("there is none");
        assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    }
    server.fault(Fault::status("/blobs/", 403));
    let error = layer(&client, &server, &image, 0).await.expect_err("it is refused");
    assert!(matches!(error.downcast_ref(), Some(Error::Unauthorized { .. })), "{error:?}");
}

#[tokio::test]
async fn servers_are_asked_for_no_more_than_they_may_be() {
    let image = app();
    for (settings, resolves, serves) in [
        ("", true, true),
        ("capabilities = ['pull', 'resolve']", true, true),
        ("capabilities = ['pull']", false, true),
        ("capabilities = ['resolve']", true, false),
        ("capabilities = ['push']", false, false),
    ] {
        let (server, mirror) = (serve(&image).await, serve(&image).await);
        let config = mirrored(&server, &mirror.host(), settings);

        let came = layer(&config.client(), &server, &image, 0).await.expect("the registry has it");

        assert!(came == bytes(&image));
        assert_eq!(count(&mirror, "HEAD", "/manifests/") > 0, resolves, "{settings}");
        assert_eq!(count(&mirror, "GET", "/blobs/") > 0, serves, "{settings}");
    }
}

#[tokio::test]
async fn whoever_may_pull_may_say_what_a_digest_stands_for() {
    let image = app();
    let (server, mirror) = (serve(&image).await, serve(&image).await);
    let config = mirrored(&server, &mirror.host(), "capabilities = ['pull']");
    let client = config.client();

    let reference = named(&server.host(), &format!("@{}", image.root.digest()));
    client.resolve(&reference).await.expect("it is in the mirror");

    assert_eq!((count(&mirror, "HEAD", ""), server.requests().len()), (1, 0));
}

#[tokio::test]
async fn with_mirrors_only_the_registry_is_never_asked() {
    let image = app();
    let (server, mirror) = (serve(&image).await, Server::start().await);
    let text = format!("mirrors_only = true\n[host.'{}']\ncapabilities = ['pull']", mirror.url());
    let config = Config::new(&server.host(), &text);

    let error = config.client().resolve(&latest(&server)).await.expect_err("nobody may resolve tags");
    let text = format!(
        "cannot use the registry settings: no server that is configured for {} may resolve tags",
        server.host()
    );
    assert_eq!(error.to_string(), text);

    let reference = named(&server.host(), &format!("@{}", image.root.digest()));
    let error = config.client().resolve(&reference).await.expect_err("it is not in the mirror");
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn a_mirror_has_credentials_of_its_own() {
    let image = app();
    let (server, mirror) = (
        Server::builder().password("user", "upstream-secret").start().await,
        Server::builder().token_auth().password("user", "mirror-secret").start().await,
    );
    push(&server, &image);
    push(&mirror, &image);
    let password = |text: &str| Credential::Password { user: "user".into(), password: Secret::new(text) };
    let known = BTreeMap::from([
        (server.host(), password("upstream-secret")),
        (mirror.host(), password("mirror-secret")),
    ]);
    let config = mirrored(&server, &mirror.host(), "");
    let client = built(builder().hosts(config.hosts()).credentials_from(known));

    layer(&client, &server, &image, 0).await.expect("the mirror lets us in");
    assert_eq!(server.requests().len(), 0);
    mirror.fault(Fault::status("/v2/", 404));
    layer(&client, &server, &image, 0).await.expect("the registry lets us in");

    let basic = |server: &Server| {
        let shown = headers(server, "", "authorization");
        shown.into_iter().filter(|it| it.starts_with("Basic")).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!((basic(&server).len(), basic(&mirror).len()), (1, 1));
    assert!(basic(&server).is_disjoint(&basic(&mirror)));
}

async fn tls(image: &Image, builder: windlass_testkit::RegistryBuilder) -> Server {
    let server = builder.start().await;
    push(&server, image);
    server
}

#[tokio::test]
async fn a_certificate_authority_can_be_trusted_for_one_host() {
    let image = app();
    let (server, stranger) =
        (tls(&image, Server::builder().tls()).await, Server::builder().tls().start().await);
    for (settings, good) in [
        ("ca = 'ca.pem'", true),
        ("ca = ['other.pem', 'ca.pem']", true),
        ("skip_verify = true", true),
        ("ca = 'other.pem'", false),
        ("", false),
    ] {
        let config = Config::new(&server.host(), &format!("server = '{}'\n{settings}", server.url()));
        config.put(&format!("{}/ca.pem", server.host()), &server.ca_pem());
        config.put(&format!("{}/other.pem", server.host()), &stranger.ca_pem());

        let came = layer(&config.client(), &server, &image, 0).await;

        assert_eq!(came.is_ok(), good, "{settings}: {came:?}");
        if let Err(error) = came {
            assert!(chain(&*error).to_lowercase().contains("certificate"), "{settings}: {}", chain(&*error));
        }
    }
    assert_eq!(stranger.connections(), 0);
}

#[tokio::test]
async fn a_certificate_of_ours_is_shown_to_a_host_that_wants_one() {
    let image = app();
    let server = tls(&image, Server::builder().client_ca()).await;
    let identity = server.client_identity();
    for (settings, good) in
        [("client = [['me.cert', 'me.key']]", true), ("client = 'both.pem'", true), ("", false)]
    {
        let host = server.host();
        let config = Config::new(&host, &format!("server = '{}'\nca = 'ca.pem'\n{settings}", server.url()));
        config.put(&format!("{host}/ca.pem"), &server.ca_pem());
        config.put(&format!("{host}/me.cert"), &identity.certificate);
        config.put(&format!("{host}/me.key"), &identity.key);
        config.put(&format!("{host}/both.pem"), &format!("{}{}", identity.certificate, identity.key));
        let client = built(builder().hosts(config.hosts()).attempts(attempts(2)));

        let came = layer(&client, &server, &image, 0).await;

        assert_eq!(came.is_ok(), good, "{settings}: {came:?}");
    }
}

#[tokio::test]
async fn a_certificate_of_ours_is_not_shown_where_a_redirect_leads() {
    let image = app();
    let server = tls(&image, Server::builder().client_ca()).await;
    let identity = server.client_identity();
    let config = Config::new(
        &server.host(),
        &format!("server = '{}'\nca = 'ca.pem'\nclient = 'me.pem'", server.url()),
    );
    config.put(&format!("{}/ca.pem", server.host()), &server.ca_pem());
    config.put(&format!("{}/me.pem", server.host()), &format!("{}{}", identity.certificate, identity.key));
    // To the same machine by another name, which is another origin.
    let url = server.url().replace("127.0.0.1", "localhost");
    server.fault(Fault::redirect("/blobs/", 307, &format!("{url}/v2/library/app/elsewhere")));

    let client = built(builder().hosts(config.hosts()).attempts(attempts(1)));
    layer(&client, &server, &image, 0).await.expect_err("it does not know us by that name");

    assert_eq!(count(&server, "GET", "/elsewhere"), 0);
}

#[tokio::test]
async fn files_that_cannot_be_read_are_named() {
    let image = app();
    let server = tls(&image, Server::builder().tls()).await;
    for (settings, name) in [
        ("ca = 'gone.pem'", "gone.pem"),
        ("ca = 'nonsense.pem'", "nonsense.pem"),
        ("ca = 'broken.pem'", "broken.pem"),
        ("client = 'nonsense.pem'", "nonsense.pem"),
        ("client = [['gone.pem', 'nonsense.pem']]", "gone.pem"),
    ] {
        let config = Config::new(&server.host(), &format!("server = '{}'\n{settings}", server.url()));
        config.put(&format!("{}/nonsense.pem", server.host()), "nonsense");
        let broken = "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n";
        config.put(&format!("{}/broken.pem", server.host()), broken);

        let error = config.client().resolve(&latest(&server)).await.expect_err("it cannot be used");

        assert!(matches!(error, Error::Tls { .. }), "{settings}: {error:?}");
        assert!(error.to_string().contains(name), "{settings}: {error}");
    }
}

#[tokio::test]
async fn headers_are_sent_with_every_request_to_their_host() {
    let image = app();
    let (server, mirror) = (serve(&image).await, serve(&image).await);
    mirror.fault(Fault::status("/blobs/", 404));
    let text = format!("[host.'{}'.header]\nx-team = 'blue'\nx-list = ['a', 'b']", mirror.url());
    let config = Config::new(&server.host(), &text);

    layer(&config.client(), &server, &image, 0).await.expect("it is there");

    assert_eq!(headers(&mirror, "", "x-team"), ["blue"; 2]);
    assert_eq!(headers(&mirror, "", "x-list").len(), 2);
    assert_eq!(headers(&server, "", "x-team").len(), 0);
}

#[tokio::test]
async fn the_api_is_where_the_path_says() {
    let (image, manifest) = (app(), br#"{"layers":[]}"#);
    let server = serve(&image).await;
    for (path, overridden, base) in [
        ("", false, "/v2/"),
        ("/prefix", false, "/prefix/v2/"),
        ("/prefix/v2", false, "/prefix/v2/"),
        ("/v2/prefix", true, "/v2/prefix/"),
        ("", true, "/"),
    ] {
        let script = Script::start(|_| reply(200, &[], manifest)).await;
        let settings = format!("override_path = {overridden}");
        let config = mirrored(&server, &format!("{}{path}", script.host), &settings);

        config.client().resolve(&latest(&server)).await.expect("it is there");

        let target = &script.seen()[0].target;
        let ns = server.host().replace(':', "%3A");
        assert_eq!(*target, format!("{base}library/app/manifests/latest?ns={ns}"), "{path}");
    }
}

#[tokio::test]
async fn a_proxy_is_gone_through_with_its_password() {
    let image = app();
    for secure in [false, true] {
        let server = tls(&image, if secure { Server::builder().tls() } else { Server::builder() }).await;
        let proxy = Proxy::to(&server).await;
        let config = Config::new(
            &server.host(),
            &format!(
                "server = '{}'\nskip_verify = true\nproxy = 'http://me:proxy-secret@{}'",
                server.url(),
                proxy.host
            ),
        );

        let came = layer(&config.client(), &server, &image, 0).await.expect("it is behind the proxy");

        assert!(came == bytes(&image));
        let seen = proxy.seen();
        assert!(!seen.is_empty());
        for request in seen {
            // `me:proxy-secret` in base 64.
            let login = request.header("proxy-authorization");
            assert_eq!(login, Some("Basic bWU6cHJveHktc2VjcmV0"), "{request:?}");
            match secure {
                true => assert_eq!((&*request.method, &*request.target), ("CONNECT", &*server.host())),
                false => assert!(request.target.starts_with(&server.url()), "{request:?}"),
            }
        }
        assert!(headers(&server, "", "proxy-authorization").len() < 3 - usize::from(secure) * 2);
    }
}

#[tokio::test]
async fn a_unix_socket_is_a_host() {
    let image = app();
    let (server, behind) = (serve(&image).await, serve(&image).await);
    let folder = tempfile::tempdir().expect("there is room");
    let path = folder.path().join("registry.sock");
    let forwarder = socket(&path, &behind);
    let config = Config::new(&server.host(), &format!("[host.'unix://{}']", path.display()));

    let came = layer(&config.client(), &server, &image, 0).await.expect("it is behind the socket");

    assert!(came == bytes(&image));
    assert_eq!((server.requests().len(), behind.requests().len()), (0, 2));
    assert_eq!(behind.requests()[0].parameter("ns"), Some(&*server.host()));
    forwarder.abort();
}

#[tokio::test]
async fn a_broken_file_fails_the_pull_and_says_where() {
    let image = app();
    let server = serve(&image).await;
    let config = Config::new(&server.host(), "server = 'http://127.0.0.1'\n\n[host.\n");

    let error = config.client().resolve(&latest(&server)).await.expect_err("it is broken");

    let path = config.path().join(server.host()).join("hosts.toml");
    assert!(error.to_string().starts_with(&format!("cannot use {}, line 3: ", path.display())), "{error}");
    assert_eq!(server.requests().len(), 0);
}

#[tokio::test]
async fn this_machine_is_plain_and_others_are_not_unless_declared() {
    let image = app();
    let server = serve(&image).await;
    let port = server.host().rsplit(':').next().expect("it has a port").to_owned();
    for host in [format!("localhost:{port}"), format!("127.0.0.1:{port}")] {
        let resolved = built(builder()).resolve(&named(&host, ":latest")).await;
        assert_eq!(resolved.expect("it is there").descriptor, image.root, "{host}");
    }
    // This is us too, but a name does not say so.
    let host = format!("0.0.0.0:{port}");
    let reference = named(&host, ":latest");
    let error = built(builder()).resolve(&reference).await.expect_err("it does not speak TLS");
    assert!(matches!(error, Error::Connect { .. } | Error::Transport { .. }), "{error:?}");
    built(builder().plain_http(host)).resolve(&reference).await.expect("it was declared");
}
