//! Reads the HTTP/2 preface before the HTTP/2 library does, so that a silent client or one of another protocol is
//! refused in time.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// The first bytes of every HTTP/2 client.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The answer to a browser or to curl without --http2-prior-knowledge.
const WRONG_PROTOCOL: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
connection: close\r\ncontent-type: text/plain\r\ncontent-length: 85\r\n\r\n\
This port speaks gRPC (HTTP/2 without TLS). Metrics and health are on the other one.\n";

/// Reads the preface. Anything else is an error; an HTTP/1 client also gets a response that explains it.
pub(super) async fn read<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) -> io::Result<Prefaced<S>> {
    let mut received = [0; PREFACE.len()];
    let mut length = 0;
    while length < received.len() {
        let count = stream.read(&mut received[length..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        length += count;
        if received[..length] != PREFACE[..length] {
            refuse(&mut stream, &received[..length]).await;
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not an HTTP/2 preface"));
        }
    }
    Ok(Prefaced { stream, replayed: 0 })
}

async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, received: &[u8]) {
    if [&b"GET "[..], b"POST", b"HEAD", b"PUT ", b"OPTI"]
        .iter()
        .any(|method| received.starts_with(method))
    {
        // The connection ends either way.
        let _ = stream.write_all(WRONG_PROTOCOL).await;
        let _ = stream.shutdown().await;
        // A close with unread bytes would reset the connection and could lose the answer. The preface timeout bounds
        // this loop.
        let mut rest = [0; 512];
        while stream.read(&mut rest).await.is_ok_and(|count| count > 0) {}
    }
}

/// A stream that replays the preface, then continues with the socket.
#[derive(Debug)]
pub(super) struct Prefaced<S> {
    stream: S,
    replayed: usize,
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefaced<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.replayed < PREFACE.len() {
            let rest = &PREFACE[self.replayed..];
            let count = rest.len().min(buffer.remaining());
            buffer.put_slice(&rest[..count]);
            self.replayed += count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefaced<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
