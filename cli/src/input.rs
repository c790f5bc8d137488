//! Values of the command line that several commands read.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, stdin};

use crate::exit::{Failure, Result};

/// Reads a payload or result of the command line: text, `@file`, or `-` for stdin.
pub(crate) async fn read_payload(text: &str) -> Result<Bytes> {
    if text == "-" {
        let mut bytes = Vec::new();
        stdin().read_to_end(&mut bytes).await?;
        return Ok(bytes.into());
    }
    match text.strip_prefix('@') {
        Some(path) => match tokio::fs::read(path).await {
            Ok(bytes) => Ok(bytes.into()),
            Err(error) => Err(Failure::usage(format!("{path}: {error}"))),
        },
        None => Ok(Bytes::copy_from_slice(text.as_bytes())),
    }
}

pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("not of the form KEY=VALUE".to_owned()),
    }
}
