//! HTTP/2: a server that sends `GOAWAY` in the middle of a body.

use std::{fs, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::TryStreamExt;
use http::{Method, Request, Response, StatusCode, header::RANGE};
use oci_spec::image::{Descriptor, MediaType};
use rustls::{
    ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use windlass_content::hash::sha256;
use windlass_reference::Reference;
use windlass_remotes::{Resolver, hosts::HostsDir};

use crate::support::{builder, built};

/// Answers for one blob. The first body breaks off in the middle, and the connection is told to go away.
async fn serve(connection: TcpStream, acceptor: TlsAcceptor, blob: Bytes) -> Option<()> {
    let tls = acceptor.accept(connection).await.ok()?;
    let mut connection = h2::server::handshake(tls).await.ok()?;
    // A stream that is dropped before its end is reset, and this is about the connection.
    let (mut unfinished, mut going) = (Vec::new(), false);
    loop {
        let next = tokio::select! {
            next = connection.accept() => next?,
            // What was sent before has arrived by now.
            () = tokio::time::sleep(Duration::from_millis(300)), if going => {
                connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
                going = false;
                continue;
            }
        };
        let (request, mut respond) = next.ok()?;
        let (response, body) = answer(&request, &blob);
        let mut stream = respond.send_response(response, body.is_empty()).ok()?;
        let whole = body.len() < blob.len();
        if !body.is_empty() {
            let sent = if whole { body } else { body.slice(..body.len() / 2) };
            stream.send_data(sent, whole).ok()?;
            if !whole {
                unfinished.push(stream);
                going = true;
            }
        }
    }
}

fn answer(request: &Request<h2::RecvStream>, blob: &Bytes) -> (Response<()>, Bytes) {
    let range = request.headers().get(RANGE).and_then(|range| range.to_str().ok());
    let first: Option<usize> =
        range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
    let response = Response::builder().header("content-type", "application/octet-stream");
    let (response, body) = match first {
        _ if request.uri().path().contains("/manifests/") => {
            (response.status(StatusCode::NOT_FOUND), Bytes::new())
        }
        Some(first) => {
            let range = format!("bytes {first}-{}/{}", blob.len() - 1, blob.len());
            (response.status(StatusCode::PARTIAL_CONTENT).header("content-range", range), blob.slice(first..))
        }
        None => (response.header("content-length", blob.len()), blob.clone()),
    };
    let body = if request.method() == Method::HEAD { Bytes::new() } else { body };
    (response.body(()).expect("the headers are ASCII"), body)
}

#[tokio::test]
async fn a_body_goes_on_after_its_server_told_the_connection_to_go_away() {
    // Given a server with HTTP/2 alone, and a client that trusts it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("it can be signed");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("the key is the certificate's");
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let host = listener.local_addr().expect("it is bound").to_string();
    let blob = Bytes::from((0..200_000_u32).map(|at| (at / 7) as u8).collect::<Vec<_>>());
    let served = blob.clone();
    let server = tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection, acceptor.clone(), served.clone()));
        }
    });
    let certs = tempfile::tempdir().expect("a temporary folder can be made");
    let folder = certs.path().join(&host);
    fs::create_dir(&folder).expect("it is empty");
    fs::write(folder.join("ca.pem"), certified.cert.pem()).expect("there is room");
    fs::write(folder.join("hosts.toml"), format!("server = \"https://{host}\"\nca = \"ca.pem\"\n"))
        .expect("there is room");
    let client = built(builder().hosts(HostsDir::new(certs.path())));
    let node = Descriptor::new(MediaType::ImageLayer, blob.len() as u64, sha256(&blob));
    let name: Reference = format!("{host}/app@{}", node.digest()).parse().expect("it is a reference");

    // When its blob is read.
    let resolved = client.resolve(&name).await.expect("it is there");
    let body = resolved.fetcher.fetch(&node, 0).await.expect("it begins");
    let chunks: Vec<_> = body.try_collect().await.expect("the rest comes over another connection");

    assert!(chunks.concat() == blob, "all bytes came, each once");
    server.abort();
}
