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

use crate::{server, state::State};

/// Serves until the registry is dropped. All connections end then.
pub(crate) async fn serve(listener: TcpListener, state: Arc<State>, mut stopped: oneshot::Receiver<()>) {
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
                connections.spawn(connection(stream, state.clone()));
            }
        }
    }
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    let reset = Reset::default();
    let wire = Wire { stream, reset: reset.clone() };
    speak(wire, state, reset).await;
}

async fn speak<T>(stream: T, state: Arc<State>, reset: Reset)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| server::answer(state.clone(), reset.clone(), request));
    let builder = auto::Builder::new(TokioExecutor::new()).http1_only();
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
