//! The least of an HTTP client: one request, one connection, the whole answer.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

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
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("content-length: {}\r\n\r\n", body.len());

    let mut stream =
        TcpStream::connect(host).await.unwrap_or_else(|error| panic!("connect to {host}: {error}"));
    let request = [head.as_bytes(), body].concat();
    let mut answer = Vec::new();
    stream.write_all(&request).await.unwrap_or_else(|error| panic!("send {method} {path}: {error}"));
    stream
        .read_to_end(&mut answer)
        .await
        .unwrap_or_else(|error| panic!("read the answer to {path}: {error}"));
    parse(&answer)
        .unwrap_or_else(|| panic!("{method} {path}: {:?} is no HTTP", String::from_utf8_lossy(&answer)))
}

fn parse(answer: &[u8]) -> Option<Response> {
    let end = answer.windows(4).position(|it| it == b"\r\n\r\n")?;
    let mut lines = str::from_utf8(&answer[..end]).ok()?.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
    Some(Response { status, headers, body: answer[end + 4..].to_vec() })
}
