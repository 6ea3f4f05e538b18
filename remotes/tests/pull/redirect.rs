//! Redirects, and what does not follow them.

use std::time::Duration;

use windlass_remotes::{Error, Resolver};
use windlass_testkit::{Fault, Registry as Server};

use crate::support::{
    Config, Script, app, builder, built, bytes, chain, client, count, cut, fetcher, headers, latest, layer,
    named, push, read, reply, serve,
};

#[tokio::test]
async fn nothing_of_ours_follows_a_redirect() {
    let image = app();
    let storage = Server::start().await;
    for token in [false, true] {
        let server = Server::builder().password("user", "hunter2");
        let server = if token { server.token_auth() } else { server }.start().await;
        push(&server, &image);
        server.redirect_blobs_to(&storage);
        let config = Config::new(
            &server.host(),
            &format!("[host.'{}'.header]\nx-secret = 'blue'\nauthorization = 'Basic static'", server.url()),
        );
        let builder = builder().hosts(config.hosts()).credentials(server.host(), "user", "hunter2");

        let came = layer(&built(builder), &server, &image, 0).await.expect("it is in the storage");

        assert!(came == bytes(&image));
        assert_eq!(headers(&server, "/blobs/", "x-secret"), ["blue"; 1]);
    }
    let requests = storage.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    for request in requests {
        for name in ["authorization", "x-secret", "cookie", "referer"] {
            assert!(!request.headers.contains_key(name), "{request:?}");
        }
    }
}

#[tokio::test]
async fn ten_redirects_are_followed_and_no_more() {
    for (redirects, good) in [(10, true), (11, false)] {
        let script = Script::start(move |seen| {
            if seen.target.contains("/manifests/") {
                return reply(200, &[], br#"{"layers":[]}"#);
            }
            let done: usize = seen.target.strip_prefix("/hop/").map_or(0, |it| it.parse().expect("a number"));
            match done == redirects {
                true => reply(200, &[], b"x"),
                // Half of them go from one folder to another by a relative path.
                false => reply(307, &[("location", &format!("/hop/{}", done + 1))], b""),
            }
        })
        .await;
        let fetcher = fetcher(&client(), &named(&script.host, ":1")).await;
        let node = oci_spec::image::Descriptor::new(
            oci_spec::image::MediaType::ImageLayer,
            1,
            windlass_content::hash::sha256(b"x"),
        );

        let came = read(&*fetcher, &node, 0).await;

        assert_eq!(came.is_ok(), good, "{redirects}: {came:?}");
        if let Err(error) = came {
            assert!(error.to_string().ends_with("more than 10 redirects"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_circle_of_redirects_ends() {
    let image = app();
    let server = serve(&image).await;
    let other = serve(&image).await;
    for (from, to) in [(&server, &other), (&other, &server)] {
        let url = format!("{}/v2/library/app/blobs/{}", to.url(), image.layers()[0].digest());
        from.fault(Fault::redirect("/blobs/", 302, &url));
    }

    let error = layer(&client(), &server, &image, 0).await.expect_err("it never ends");

    assert!(error.to_string().ends_with("more than 10 redirects"), "{error}");
    assert_eq!(count(&server, "GET", "/blobs/") + count(&other, "GET", "/blobs/"), 11);
}

#[tokio::test]
async fn a_redirect_does_not_lead_out_of_tls() {
    let image = app();
    let server = Server::builder().tls().start().await;
    push(&server, &image);
    let other = serve(&image).await;
    server.redirect_blobs_to(&other);
    let config = Config::new(&server.host(), &format!("server = '{}'\nca = 'ca.pem'", server.url()));
    config.put(&format!("{}/ca.pem", server.host()), &server.ca_pem());

    let error = layer(&config.client(), &server, &image, 0).await.expect_err("it is not TLS");

    assert!(error.to_string().ends_with("it redirects from TLS to something else"), "{error}");
    assert_eq!(other.requests().len(), 0);
}

#[tokio::test]
async fn a_redirect_to_nowhere_is_an_error() {
    let image = app();
    for (location, why) in [
        ("file:///etc/passwd", "to nowhere"),
        ("ftp://other.example/x", "from TLS to something else"),
        ("http://", "to nowhere"),
        ("data:text/plain,x", "to nowhere"),
    ] {
        let server = serve(&image).await;
        server.fault(Fault::redirect("/blobs/", 307, location));

        let error = layer(&client(), &server, &image, 0).await.expect_err("it leads nowhere");

        assert!(matches!(error.downcast_ref(), Some(Error::BadResponse { .. })), "{location}: {error:?}");
        assert!(error.to_string().contains(why), "{location}: {error}");
        assert_eq!(count(&server, "GET", "/blobs/"), 1, "{location}");
    }
    let server = serve(&image).await;
    server.fault(Fault::status("/blobs/", 307));
    let error = layer(&client(), &server, &image, 0).await.expect_err("it does not say where to");
    assert!(error.to_string().contains("to nowhere"), "{error}");
}

#[tokio::test]
async fn a_password_and_an_identity_token_do_not_follow_a_redirected_token_request() {
    use windlass_remotes::credentials::{Credential, Secret};
    let image = app();
    let (password, user) = (Secret::new("hunter2"), "user".to_owned());
    for credential in [Credential::Password { user, password }, Credential::IdentityToken(Secret::new("id"))]
    {
        let server =
            Server::builder().token_auth().password("user", "hunter2").identity_token("id").start().await;
        push(&server, &image);
        let other = Server::start().await;
        let elsewhere = format!("{}/token", other.url());
        server.fault(Fault::answer("/token", 307, &[("location", &elsewhere)], ""));
        let known = std::collections::BTreeMap::from([(server.host(), credential.clone())]);

        let error = built(builder().credentials_from(known)).resolve(&latest(&server)).await;

        error.expect_err("there is no token");
        for request in other.requests() {
            assert!(!request.headers.contains_key("authorization"), "{credential:?}: {request:?}");
            assert_eq!((request.method.as_str(), request.body_length), ("GET", 0), "{credential:?}");
        }
    }
}

#[tokio::test]
async fn who_asks_for_a_login_after_a_redirect_gets_none() {
    let image = app();
    let server = Server::builder().token_auth().password("user", "hunter2").start().await;
    push(&server, &image);
    let other = Server::builder().token_auth().start().await;
    push(&other, &image);
    let url = format!("{}/v2/library/app/blobs/{}", other.url(), image.layers()[0].digest());
    server.fault(Fault::redirect("/blobs/", 307, &url));
    let client = built(builder().credentials(server.host(), "user", "hunter2"));

    let error = layer(&client, &server, &image, 0).await.expect_err("it is closed there");

    assert!(chain(&*error).starts_with("unauthorized"), "{error}");
    assert_eq!((count(&other, "GET", "/token"), headers(&other, "", "authorization").len()), (0, 0));
}

#[tokio::test]
async fn a_signed_url_is_used_again_until_it_ends() {
    let image = app();
    // A URL that is about to end is not worth remembering.
    for (lifetime, asked) in [(300, 1), (3, 4)] {
        let server = serve(&image).await;
        let storage = Server::builder().signed_url_lifetime(Duration::from_secs(lifetime)).start().await;
        server.redirect_blobs_to(&storage);
        let fetcher = fetcher(&client(), &latest(&server)).await;

        for from in [0, 1, 30_000, 40_000] {
            let came = read(&*fetcher, &image.layers()[0], from).await.expect("it is in the storage");
            assert!(came == bytes(&image)[from as usize..], "{from}");
        }

        assert_eq!((count(&server, "GET", "/blobs/"), storage.requests().len()), (asked, 4), "{lifetime}");
    }
}

#[tokio::test]
async fn a_signed_url_that_is_refused_is_forgotten() {
    let image = app();
    let server = serve(&image).await;
    let storage = Server::builder().signed_url_uses(2).start().await;
    server.redirect_blobs_to(&storage);
    let fetcher = fetcher(&client(), &latest(&server)).await;

    for _ in 0..4 {
        let came = read(&*fetcher, &image.layers()[0], 0).await.expect("it is in the storage");
        assert!(came == bytes(&image));
    }

    assert_eq!((count(&server, "GET", "/blobs/"), storage.requests().len()), (2, 5));
}

#[tokio::test]
async fn a_body_from_a_storage_goes_on_there() {
    let image = app();
    let server = serve(&image).await;
    let storage = Server::start().await;
    server.redirect_blobs_to(&storage);
    storage.fault(Fault::truncate_at("/cdn/", 20_000).once());

    let came = layer(&client(), &server, &image, 0).await.expect("the rest comes");

    assert!(came == bytes(&image));
    let size = came.len() - 1;
    assert_eq!(headers(&storage, "/cdn/", "range"), [format!("bytes=20000-{size}")]);
    assert_eq!(count(&server, "GET", "/blobs/"), 1);
}

#[tokio::test]
async fn a_manifest_may_be_elsewhere_too() {
    let image = app();
    let other = serve(&image).await;
    for status in [301, 302, 303, 307, 308] {
        let server = Server::start().await;
        let url = format!("{}/v2/library/app/manifests/latest", other.url());
        server.fault(Fault::redirect("/manifests/", status, &url));

        let resolved = client().resolve(&latest(&server)).await.expect("it is elsewhere");

        assert_eq!(resolved.descriptor, image.root, "{status}");
    }
}

#[tokio::test]
async fn what_follows_a_redirect_is_the_same_request() {
    let script = Script::start(|seen| match seen.target.as_str() {
        target if target.contains("/manifests/") => reply(200, &[], br#"{"layers":[]}"#),
        target if target.contains("/blobs/") => reply(307, &[("location", "/store?x=%2F&y=a%20b")], b""),
        "/store?x=%2F&y=a%20b" if seen.header("range") == Some("bytes=2-3") => {
            reply(206, &[("content-range", "bytes 2-3/4")], b"34")
        }
        _ => cut(200, &[], 4, b"12"),
    })
    .await;
    let fetcher = fetcher(&client(), &named(&script.host, ":1")).await;
    let node = oci_spec::image::Descriptor::new(
        oci_spec::image::MediaType::ImageLayer,
        4,
        windlass_content::hash::sha256(b"1234"),
    );

    assert_eq!(read(&*fetcher, &node, 0).await.expect("it is there"), b"1234");
}
