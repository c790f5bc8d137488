//! Posts a job to a URL: the status code of the response is the outcome, its body the result.

use std::{
    error::Error,
    fmt::Write as _,
    time::{Duration, SystemTime},
};

use bananas_worker::{HandlerError, JobContext, Outcome};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

use super::retry_after::{retry_after, usual_backoff};
use crate::exit::{Failure, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How much of an error response is kept with the failure.
const MAX_SHOWN_CHARS: usize = 2_000;
/// Codes for an invalid job: a retry would get the same response. Any other error may be temporary, for example during
/// a deployment of the server.
const PERMANENT_ERRORS: [StatusCode; 5] = [
    StatusCode::BAD_REQUEST,
    StatusCode::GONE,
    StatusCode::PAYLOAD_TOO_LARGE,
    StatusCode::UNSUPPORTED_MEDIA_TYPE,
    StatusCode::UNPROCESSABLE_ENTITY,
];

/// The URL to post to, and the limit of a result.
#[derive(Debug)]
pub(super) struct Http {
    url: Uri,
    client: Client<HttpConnector, Full<Bytes>>,
    max_result_bytes: usize,
}

impl Http {
    pub(super) fn new(url: &str, max_result_bytes: usize) -> Result<Self> {
        let parsed: Uri = url
            .parse()
            .map_err(|error| Failure::usage(format!("--http {url}: {error}")))?;
        if parsed.scheme_str() != Some("http") || parsed.host().is_none() {
            return Err(Failure::usage(format!(
                "--http {url}: only http://host[:port]/path is supported"
            )));
        }
        let authority = parsed.authority().map_or("", |authority| authority.as_str());
        if authority.contains('@') {
            return Err(Failure::usage("--http: user and password are not supported"));
        }
        if authority.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']')) && parsed.port_u16().is_none() {
            return Err(Failure::usage(format!("--http {url}: the port is not 1 to 65535")));
        }
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self {
            url: parsed,
            client,
            max_result_bytes,
        })
    }

    /// Posts a job. The attempt timeout of the job drops this future.
    pub(super) async fn post(&self, job: JobContext, payload: Bytes) -> Result<Outcome, HandlerError> {
        let mut request = Request::post(self.url.clone())
            .body(Full::new(payload))
            .map_err(|error| HandlerError::dead_letter("Request", error))?;
        add_headers(request.headers_mut(), &job);
        let response = tokio::select! {
            response = self.client.request(request) => response,
            reason = job.cancelled() => return Err(HandlerError::retry("Cancelled", format!("{reason:?}"))),
        };
        let response =
            response.map_err(|error| HandlerError::retry("Http", format!("{}: {}", self.url, causes(&error))))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, self.max_result_bytes).collect().await;
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => {
                let text = format!("the response has more than {} bytes", self.max_result_bytes);
                return Err(HandlerError::dead_letter("ResultTooLarge", text));
            }
            Err(error) => return Err(HandlerError::retry("Http", causes(error.as_ref()))),
        };
        outcome(parts.status, &parts.headers, body, job.attempt())
    }
}

fn add_headers(headers: &mut HeaderMap, job: &JobContext) {
    let content_type = if job.content_type().is_empty() {
        "application/octet-stream"
    } else {
        job.content_type()
    };
    let as_json = |map| ascii(&serde_json::to_string(map).unwrap_or_default());
    for (name, value) in [
        (header::CONTENT_TYPE, content_type.to_owned()),
        (HeaderName::from_static("bananas-job-id"), job.job_id().to_owned()),
        (HeaderName::from_static("bananas-job-type"), job.job_type().to_owned()),
        (
            HeaderName::from_static("bananas-routing-key"),
            job.routing_key().to_owned(),
        ),
        (HeaderName::from_static("bananas-priority"), job.priority().to_string()),
        (HeaderName::from_static("bananas-attempt"), job.attempt().to_string()),
        (
            HeaderName::from_static("bananas-max-attempts"),
            job.max_attempts().to_string(),
        ),
        (HeaderName::from_static("bananas-fence"), job.fence().to_string()),
        (HeaderName::from_static("bananas-headers"), as_json(job.headers())),
        (HeaderName::from_static("bananas-labels"), as_json(job.labels())),
        (
            HeaderName::from_static("traceparent"),
            job.traceparent().unwrap_or_default().to_owned(),
        ),
        (
            HeaderName::from_static("tracestate"),
            job.tracestate().unwrap_or_default().to_owned(),
        ),
    ] {
        // A value that is not valid in HTTP is left out.
        if let Ok(value) = HeaderValue::from_bytes(value.as_bytes())
            && !value.is_empty()
        {
            headers.insert(name, value);
        }
    }
}

/// The error and its sources: the error alone only names the step that failed.
fn causes(error: &(dyn Error + 'static)) -> String {
    let mut texts = vec![error.to_string()];
    let mut source = error.source();
    while let Some(error) = source {
        let text = error.to_string();
        // Some errors include the text of their source.
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
        source = error.source();
    }
    texts.join(": ")
}

/// JSON in ASCII, which every HTTP server accepts in a header.
fn ascii(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() {
            text.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(text, "\\u{unit:04x}");
            }
        }
    }
    text
}

fn outcome(code: StatusCode, headers: &HeaderMap, body: Bytes, attempt: u32) -> Result<Outcome, HandlerError> {
    let header = |name| {
        headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    if code.is_success() {
        if body.is_empty() {
            return Ok(Outcome::ack());
        }
        return Ok(Outcome::ack_with(body, header(header::CONTENT_TYPE)));
    }
    let text = String::from_utf8_lossy(&body);
    let text = if header(header::CONTENT_TYPE).starts_with("text/html") {
        without_tags(&text)
    } else {
        text.trim().to_owned()
    };
    let mut message = code.to_string();
    if code.is_redirection() {
        let _ = write!(message, " to {}, which is not followed", header(header::LOCATION));
    }
    if !text.is_empty() {
        message.push_str(": ");
        message.extend(text.chars().take(MAX_SHOWN_CHARS));
    }
    let kind = format!("Http{}", code.as_u16());
    if PERMANENT_ERRORS.contains(&code) {
        return Err(HandlerError::dead_letter(kind, message));
    }
    let error = HandlerError::retry(kind, message);
    Err(match retry_after(headers, SystemTime::now()) {
        Some(delay) => error.after(delay.max(usual_backoff(attempt))),
        None => error,
    })
}

/// The text of an HTML page.
fn without_tags(page: &str) -> String {
    let mut in_tag = false;
    let text: String = page
        .chars()
        .map(|c| match c {
            '<' => {
                in_tag = true;
                ' '
            }
            '>' => {
                in_tag = false;
                ' '
            }
            _ if in_tag => ' ',
            c => c,
        })
        .collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(retry_after: Option<&'static str>) -> HeaderMap {
        retry_after
            .map(|value| (header::RETRY_AFTER, HeaderValue::from_static(value)))
            .into_iter()
            .collect()
    }

    fn of(code: u16, retry_after: Option<&'static str>) -> Result<Outcome, HandlerError> {
        outcome(
            StatusCode::from_u16(code).unwrap(),
            &headers(retry_after),
            Bytes::from_static(b"why"),
            2,
        )
    }

    #[test]
    fn the_status_code_is_the_outcome() {
        assert_eq!(of(200, None).unwrap(), Outcome::ack_with("why", ""));
        assert_eq!(
            of(422, None).unwrap_err(),
            HandlerError::dead_letter("Http422", "422 Unprocessable Entity: why")
        );
        for code in [401, 403, 404, 409, 425] {
            let error = of(code, None).unwrap_err();
            assert!(format!("{error:?}").contains("dead: false"), "{error:?}");
        }
        assert_eq!(
            of(500, None).unwrap_err(),
            HandlerError::retry("Http500", "500 Internal Server Error: why")
        );
        assert_eq!(
            of(408, None).unwrap_err(),
            HandlerError::retry("Http408", "408 Request Timeout: why")
        );
        let busy = HandlerError::retry("Http429", "429 Too Many Requests: why").after(Duration::from_secs(7));
        assert_eq!(of(429, Some("7")).unwrap_err(), busy);
        // The second attempt: no sooner than after 4 s.
        let at_once = HandlerError::retry("Http429", "429 Too Many Requests: why").after(Duration::from_secs(4));
        assert_eq!(of(429, Some("0")).unwrap_err(), at_once);
    }

    #[test]
    fn a_failure_contains_the_response() {
        let mut headers = headers(None);
        headers.insert(header::LOCATION, HeaderValue::from_static("/login"));
        let error = outcome(StatusCode::FOUND, &headers, Bytes::new(), 1).unwrap_err();
        assert_eq!(
            error,
            HandlerError::retry("Http302", "302 Found to /login, which is not followed")
        );
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/html; charset=utf-8"),
        );
        let page = "<html>\n<body class=\"x\"><h1>502</h1>no  upstream</body></html>";
        let error = outcome(StatusCode::BAD_GATEWAY, &headers, page.into(), 1).unwrap_err();
        assert_eq!(
            error,
            HandlerError::retry("Http502", "502 Bad Gateway: 502 no upstream")
        );
        assert_eq!(
            ascii("{\"stadt\":\"Köln 🍌\"}"),
            "{\"stadt\":\"K\\u00f6ln \\ud83c\\udf4c\"}"
        );
    }

    #[tokio::test]
    async fn an_unreachable_server_is_named_with_the_reason() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let uri: Uri = format!("http://{}/", nobody.local_addr().unwrap()).parse().unwrap();
        drop(nobody);
        let http = Http::new(&uri.to_string(), 1).unwrap();
        let error = http.client.get(uri).await.unwrap_err();
        assert!(causes(&error).contains("refused"), "{}", causes(&error));
    }

    #[test]
    fn only_http_urls_are_accepted() {
        assert!(Http::new("http://127.0.0.1:3000/jobs", 1).is_ok());
        for url in ["https://a/", "a", "http://"] {
            assert!(Http::new(url, 1).is_err(), "{url}");
        }
    }
}
