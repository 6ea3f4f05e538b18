//! Lists of tags and of repositories.

use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use windlass_remotes::{Error, Result};
use windlass_testkit::{Fault, ImageBuilder, Registry as Server};

use crate::support::{app, at_once, client, trusting};

const TAGS: &str = "/v2/app/tags/list";

async fn with_tags(builder: windlass_testkit::RegistryBuilder, tags: &[&str]) -> Server {
    let server = builder.start().await;
    let image = ImageBuilder::new().build();
    tags.iter().for_each(|tag| server.push(&image, "app", tag));
    server
}

async fn tags(server: &Server) -> Result<Vec<String>> {
    client().tags(&app(&server.host(), "")).try_collect().await
}

/// A registry that answers a list of tags with these bodies and `Link` headers, page after page.
async fn pages(pages: &[(&[&str], &str)]) -> Server {
    let server = Server::start().await;
    for (links, body) in pages {
        let headers: Vec<_> = links.iter().map(|link| ("link", *link)).collect();
        server.fault(Fault::answer(TAGS, 200, &headers, body).once());
    }
    server
}

#[tokio::test]
async fn all_tags_are_listed_in_pages_of_any_kind() {
    let names = ["a", "b", "c", "d", "v1.0-rc.1_x"];
    for builder in [Server::builder(), Server::builder().relative_locations(), Server::builder().token_auth()]
    {
        let server = with_tags(builder.page_limit(at_once(2)), &names).await;

        assert_eq!(tags(&server).await.expect("they are good"), names);

        let lists = server.requests().iter().filter(|request| request.path.starts_with(TAGS)).count();
        assert!((3..=4).contains(&lists), "{lists}: the first one may be asked for a token");
    }
}

#[tokio::test]
async fn pages_are_read_as_they_are_needed() {
    let server = with_tags(Server::builder().page_limit(at_once(3)), &["a", "b", "c", "d", "e"]).await;
    let mut list = client().tags(&app(&server.host(), ""));
    assert!(server.requests().is_empty(), "nobody has asked for a tag");

    let first: Vec<_> = list.by_ref().take(3).try_collect().await.expect("they are good");

    assert_eq!(first, ["a", "b", "c"]);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(list.try_collect::<Vec<_>>().await.expect("they are good"), ["d", "e"]);
}

#[tokio::test]
async fn the_next_page_is_found_among_several_links() {
    let (one, two) = (r#"{"tags":["a"]}"#, r#"{"tags":["b"]}"#);
    for links in [
        &[r#"<list?last=a>; rel="next""#][..],
        &[r#"</v2/app/tags/list?last=a>; rel="next""#],
        &[r#"<?last=a>; rel=next"#],
        &[r#"</first>; rel="first", </v2/app/tags/list?last=a>; rel="next""#],
        &[r#"</first>; rel="first""#, r#"</v2/app/tags/list?last=a>; rel="next""#],
    ] {
        let server = pages(&[(links, one), (&[], two)]).await;

        assert_eq!(tags(&server).await.expect("they are good"), ["a", "b"], "{links:?}");
        assert!(server.requests()[1].path.ends_with("/v2/app/tags/list?last=a"), "{links:?}");
    }
}

#[tokio::test]
async fn an_empty_list_may_have_many_forms() {
    for body in [r#"{"name":"app","tags":[]}"#, r#"{"name":"app","tags":null}"#, "{}"] {
        let server = pages(&[(&[], body)]).await;
        assert_eq!(tags(&server).await.expect(body), [""; 0], "{body}");
    }
}

#[tokio::test]
async fn pages_that_cannot_be_right_are_errors_after_what_came_before() {
    let other = with_tags(Server::builder(), &["z"]).await;
    let elsewhere = format!("<{}{TAGS}>; rel=next", other.url());
    let circle = "</v2/app/tags/list?last=a>; rel=next";
    for (link, why) in [
        (circle, "its pages lead in a circle, or have no end"),
        (&*elsewhere, "its next page is on another host"),
        ("<https://127.0.0.1:1/v2/app/tags/list>; rel=next", "its next page is on another host"),
        ("<http://>; rel=next", "its next page is not at a URL"),
    ] {
        let page = r#"{"tags":["a"]}"#;
        let server = pages(&[(&[circle], page), (&[link], page)]).await;

        let items: Vec<_> = client().tags(&app(&server.host(), "")).collect().await;

        let [Ok(first), Err(error)] = &items[..] else { panic!("{link}: {items:?}") };
        assert_eq!(first, "a");
        let url = format!("{}{TAGS}", server.url());
        assert_eq!(error.to_string(), format!("{url} gave an answer that cannot be used: {why}"));
    }
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_registry_on_tls_cannot_lead_its_lists_out_of_it() {
    let server = Server::builder().tls().start().await;
    let link = format!("<http://{}{TAGS}?last=a>; rel=next", server.host());
    server.fault(Fault::answer(TAGS, 200, &[("link", &link)], r#"{"tags":["a"]}"#));
    let (_folder, hosts) = trusting(&server.host(), &server.ca_pem());
    let client = crate::support::builder().hosts(hosts).build().expect("the settings are good");

    let items: Vec<_> = client.tags(&app(&server.host(), "")).collect().await;

    assert!(matches!(&items[..], [Err(Error::BadResponse { .. })]), "{items:?}");
}

#[tokio::test]
async fn names_that_are_none_are_refused_with_their_page() {
    for name in ["a\u{1b}[2Jb", "line\nbreak", "", "..", "a/b", "-a", "a:b", "é", &"x".repeat(129)] {
        let server = pages(&[(&[], &json!({ "tags": ["good", name] }).to_string())]).await;

        let items: Vec<_> = client().tags(&app(&server.host(), "")).collect().await;

        let [Err(error)] = &items[..] else { panic!("{name:?}: {items:?}") };
        assert!(error.to_string().ends_with("it lists a name that is none"), "{error}");
    }
    for name in
        ["a\u{1b}[2Jb", "", "../x", "/a", "a/", "a:b", "A", "a@b", &format!("a@sha256:{}", "0".repeat(64))]
    {
        let server = Server::start().await;
        let body = json!({ "repositories": ["good", name] }).to_string();
        server.fault(Fault::answer("/_catalog", 200, &[], &body));

        let items: Vec<_> = client().catalog(&server.host()).collect().await;

        let [Err(error)] = &items[..] else { panic!("{name:?}: {items:?}") };
        assert!(error.to_string().ends_with("it lists a name that is none"), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_list_is_an_error() {
    for body in ["<html>", "null", "[]", r#"{"tags":"a"}"#, r#"{"tags":[1]}"#] {
        let server = pages(&[(&[], body)]).await;

        let error = tags(&server).await.expect_err(body).to_string();

        assert!(error.ends_with("it is not the list that was asked for"), "{error}");
    }
    let server = Server::start().await;
    server.fault(Fault::endless_body(TAGS));
    server.push(&ImageBuilder::new().build(), "app", "v1");
    let error = tags(&server).await.expect_err("it has no end");
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn a_repository_that_is_not_there_has_no_list() {
    let server = Server::start().await;

    let error = tags(&server).await.expect_err("there is none");

    assert_eq!(error.to_string(), format!("{}/app not found in the registry", server.host()));
}

#[tokio::test]
async fn a_page_that_breaks_is_read_again() {
    let server = with_tags(Server::builder().page_limit(at_once(1)), &["a", "b"]).await;
    server.fault(Fault::status("last=a", 503).once());
    server.fault(Fault::truncate_at("last=a", 5).once());

    assert_eq!(tags(&server).await.expect("it is read again"), ["a", "b"]);
}

#[tokio::test]
async fn the_repositories_of_a_registry_are_listed() {
    let server = Server::builder().token_auth().page_limit(at_once(2)).start().await;
    let image = ImageBuilder::new().build();
    let names = ["app", "library/redis", "team/a/b-c", "x__y"];
    names.iter().for_each(|name| server.push(&image, name, "latest"));

    let listed: Vec<_> = client().catalog(&server.host()).try_collect().await.expect("it may be listed");

    assert_eq!(listed, names);
    let requests = server.requests();
    let scope = requests.iter().find_map(|request| request.parameter("scope"));
    assert_eq!(scope, Some("registry:catalog:*"));
}
