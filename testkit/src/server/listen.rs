//! Connections: how they are accepted, and how they end before their time.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::{server, state::State};

/// Serves until the registry is dropped. All connections end then.
pub(crate) async fn serve(listener: TcpListener, state: Arc<State>, mut stopped: oneshot::Receiver<()>) {
    let protocols: &[_] = if state.settings.http2 { &["h2", "http/1.1"] } else { &["http/1.1"] };
    let tls = state.authority.as_ref().map(|it| it.acceptor(state.settings.client_ca, protocols));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Nothing is ever sent: the sender is dropped.
            _ = &mut stopped => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let (stream, _) = accepted.expect("a bound port accepts");
                stream.set_nodelay(true).expect("a TCP socket can be told not to wait");
                state.lock().connections += 1;
                connections.spawn(connection(stream, state.clone(), tls.clone()));
            }
        }
    }
}

async fn connection(stream: TcpStream, state: Arc<State>, tls: Option<TlsAcceptor>) {
    let reset = Reset::default();
    let wire = Wire { stream, reset: reset.clone() };
    match tls {
        None => speak(wire, state, reset).await,
        Some(tls) => {
            // A client may well refuse the certificate, or have none.
            if let Ok(stream) = tls.accept(wire).await {
                speak(stream, state, reset).await;
            }
        }
    }
}

async fn speak<T>(stream: T, state: Arc<State>, reset: Reset)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    if !state.settings.http2 {
        builder = builder.http1_only();
    }
    let service = service_fn(|request| server::answer(state.clone(), reset.clone(), request));
    // An error is a fault at work, or a client that went away.
    builder.serve_connection(TokioIo::new(stream), service).await.ok();
}

/// Tells a connection that its end is to be a reset.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reset(Arc<AtomicBool>);

impl Reset {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection that sends nothing any more, not even an orderly end, once it is to be reset.
struct Wire {
    stream: TcpStream,
    reset: Reset,
}

impl Wire {
    fn check(&self) -> io::Result<()> {
        if self.reset.is_set() { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.reset.is_set() {
            // Closed like this, the socket sends RST. It fails only if the client was faster to reset.
            self.stream.set_zero_linger().ok();
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::{Request, Version},
    };
    use hyper::client::conn::http2;
    use tokio_rustls::client::TlsStream;

    use super::*;
    use crate::{
        Fault, Identity, Registry,
        http::{connect_tls, talk},
        sample,
    };

    async fn get(stream: TlsStream<TcpStream>, registry: &Registry, path: &str) -> Option<u16> {
        let (answer, _) = talk(stream, &registry.host(), "GET", path, &[], b"", usize::MAX).await;
        answer.map(|it| it.status)
    }

    #[tokio::test]
    async fn a_registry_with_tls_is_heard_by_whoever_trusts_its_authority() {
        let registry = Registry::builder().tls().start().await;
        let stranger = Registry::builder().tls().start().await;
        for host in [registry.host(), registry.host().replace("127.0.0.1", "localhost")] {
            let stream = connect_tls(&host, &registry.ca_pem(), None, &[]).await;
            let stream = stream.expect("the authority is trusted");

            assert_eq!(get(stream, &registry, "/v2/").await, Some(200), "{host}");
            let error = connect_tls(&host, &stranger.ca_pem(), None, &[]).await;
            assert!(error.is_err(), "{host}");
        }
        assert_eq!(registry.url(), format!("https://{}", registry.host()));
    }

    #[tokio::test]
    async fn all_urls_of_a_registry_with_tls_say_so() {
        let registry = Registry::builder().tls().token_auth().start().await;
        let stream = connect_tls(&registry.host(), &registry.ca_pem(), None, &[]).await;
        let stream = stream.expect("the authority is trusted");

        let (answer, _) = talk(stream, &registry.host(), "GET", "/v2/", &[], b"", usize::MAX).await;

        let answer = answer.expect("it answers");
        let challenge = answer.header("www-authenticate").expect("a 401 has a challenge");
        assert!(challenge.contains(&format!("realm=\"https://{}/token\"", registry.host())), "{challenge}");
    }

    #[tokio::test]
    async fn a_client_without_the_right_identity_hears_nothing() {
        let registry = Registry::builder().client_ca().start().await;
        let stranger = Registry::builder().client_ca().start().await;
        let status = async |identity: Option<&Identity>| {
            // With TLS 1.3 the client learns only later that it was refused.
            let stream = connect_tls(&registry.host(), &registry.ca_pem(), identity, &[]).await;
            get(stream.expect("the authority is trusted"), &registry, "/v2/").await
        };

        assert_eq!(status(Some(&registry.client_identity())).await, Some(200));
        assert_eq!(status(None).await, None);
        assert_eq!(status(Some(&stranger.client_identity())).await, None);
    }

    #[tokio::test]
    async fn a_connection_with_tls_can_be_reset() {
        let registry = Registry::builder().tls().start().await;
        let image = sample::image();
        registry.push(&image, "library/app", "latest");
        registry.fault(Fault::reset("/blobs/", 1000));
        let stream = connect_tls(&registry.host(), &registry.ca_pem(), None, &[]).await;
        let stream = stream.expect("the authority is trusted");

        let path = sample::layer_path(&image);
        let (answer, error) = talk(stream, &registry.host(), "GET", &path, &[], b"", usize::MAX).await;

        assert_eq!(error.map(|it| it.kind()), Some(io::ErrorKind::ConnectionReset));
        assert_eq!(answer.map(|it| it.body.len()), Some(1000));
    }

    #[tokio::test]
    async fn http_2_is_spoken_with_whoever_can() {
        let registry = Registry::builder().http2().start().await;
        let image = sample::image();
        registry.push(&image, "library/app", "latest");
        let old = connect_tls(&registry.host(), &registry.ca_pem(), None, &["http/1.1"]).await;
        let new = connect_tls(&registry.host(), &registry.ca_pem(), None, &["h2", "http/1.1"]).await;

        assert_eq!(get(old.expect("the authority is trusted"), &registry, "/v2/").await, Some(200));
        let new = new.expect("the authority is trusted");
        assert_eq!(new.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let (mut client, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(new)).await.expect("it speaks HTTP/2");
        let connection = tokio::spawn(connection);
        let request = Request::get(format!("{}{}", registry.url(), sample::layer_path(&image)));
        let request = request.body(Body::empty()).expect("it is a request");
        let answer = client.send_request(request).await.expect("it answers");
        assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));
        let bytes = axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await;
        assert_eq!(bytes.expect("the body is whole"), image.blob(image.layers()[0].digest()));
        assert_eq!(registry.requests()[1].headers["host"], registry.host());
        drop(client);
        connection.await.expect("nothing panics").expect("the end is orderly");
    }
}
