//! The least of an HTTP client: one request, one connection, the whole answer.

use std::io;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use crate::pki::{self, Identity};

/// What a server answered. The body ends where the connection did.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(it, _)| it == name).map(|(_, value)| &**value)
    }
}

/// Sends a request to `host`, and reads until the server closes the connection.
pub(crate) async fn send(
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Response {
    let stream = TcpStream::connect(host).await.unwrap_or_else(|error| panic!("connect to {host}: {error}"));
    let (answer, error) = talk(stream, host, method, path, headers, body, usize::MAX).await;
    match (answer, error) {
        (Some(answer), None) => answer,
        (answer, error) => panic!("{method} {path}: {error:?} after {answer:?}"),
    }
}

/// Speaks TLS with a server that the authority vouches for. The identity is for a server that asks for one.
pub(crate) async fn connect_tls(
    host: &str,
    ca_pem: &str,
    identity: Option<&Identity>,
    protocols: &[&str],
) -> io::Result<TlsStream<TcpStream>> {
    let (name, _) = host.rsplit_once(':').expect("a host has a port");
    let name = name.to_owned().try_into().expect("it is a name or an address");
    let stream = TcpStream::connect(host).await?;
    pki::connector(ca_pem, identity, protocols).connect(name, stream).await
}

/// Sends a request, and reads until the connection ends, or has given `limit` bytes. Gives what came, if it was an
/// answer, and how the connection failed, if it did.
pub(crate) async fn talk(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    limit: usize,
) -> (Option<Response>, Option<io::Error>) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());

    let request = [head.as_bytes(), body].concat();
    let sent = async {
        stream.write_all(&request).await?;
        stream.flush().await
    };
    // A server may answer, and close, before it has read everything.
    let mut error = sent.await.err();
    let (mut answer, mut part) = (Vec::new(), vec![0; 64 << 10]);
    while answer.len() < limit {
        match stream.read(&mut part).await {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&part[..read]),
            // A server that speaks TLS may end the connection without saying so.
            Err(it) if it.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(it) => {
                error = Some(it);
                break;
            }
        }
    }
    (parse(&answer), error)
}

fn parse(answer: &[u8]) -> Option<Response> {
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n")?;
    let mut lines = str::from_utf8(&answer[..end]).ok()?.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
    let mut response = Response { status, headers, body: answer[end + 4..].to_vec() };
    if response.header("transfer-encoding") == Some("chunked") {
        response.body = unchunk(&response.body);
    }
    Some(response)
}

/// The bytes in as many chunks as there are. The last one may be cut.
fn unchunk(mut chunks: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(end) = chunks.windows(2).position(|it| it == b"\r\n") {
        let size = str::from_utf8(&chunks[..end]).expect("the size of a chunk is text");
        let size = usize::from_str_radix(size, 16).expect("the size of a chunk is a hexadecimal number");
        let start = end + 2;
        bytes.extend_from_slice(&chunks[start..chunks.len().min(start + size)]);
        chunks = chunks.get(start + size + 2..).unwrap_or_default();
    }
    bytes
}

#[cfg(test)]
pub(crate) use testing::{attempt, form, get, json};

/// What only the tests of this crate need.
#[cfg(test)]
mod testing {
    use super::*;

    impl Response {
        /// The code of the registry's first error.
        pub(crate) fn error_code(&self) -> String {
            json(self)["errors"][0]["code"].as_str().expect("an error has a code").to_owned()
        }
    }

    pub(crate) fn json(response: &Response) -> serde_json::Value {
        serde_json::from_slice(&response.body).unwrap_or_else(|_| panic!("{response:?} is JSON"))
    }

    pub(crate) async fn get(host: &str, path: &str) -> Response {
        send(host, "GET", path, &[], b"").await
    }

    pub(crate) async fn form(host: &str, path: &str, form: &str) -> Response {
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        send(host, "POST", path, &headers, form.as_bytes()).await
    }

    /// What came before the connection failed, or before there were more bytes than `limit`.
    pub(crate) async fn attempt(
        host: &str,
        method: &str,
        path: &str,
        body: &[u8],
        limit: usize,
    ) -> (Option<Response>, Option<io::Error>) {
        let stream = TcpStream::connect(host).await.expect("the server accepts");
        talk(stream, host, method, path, &[], body, limit).await
    }
}
