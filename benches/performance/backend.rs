//! A model server without latency, in the benchmark's own process. It looks at a request no more than it
//! must, so that what grows with the history is what the client of the request makes of it. No model: each
//! answer writes a small file, until enough were written.

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{StatusCode, header},
    routing::post,
};
use memchr::memmem;
use tokio::net::TcpListener;

/// What the server does with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manner {
    /// It asks for so many steps, each of which writes a small file, then says its last word.
    Steps(usize),
    /// The same, but each step only reads one.
    Reads(usize),
    /// It never answers.
    Hang,
}

impl Manner {
    /// That a run takes.
    pub(crate) fn steps(self) -> usize {
        match self {
            Self::Steps(steps) | Self::Reads(steps) => steps,
            Self::Hang => 0,
        }
    }

    /// Which the steps call.
    pub(crate) fn tool(self) -> &'static str {
        match self {
            Self::Reads(_) => "read_file",
            Self::Steps(_) | Self::Hang => "write_file",
        }
    }
}

/// Starts to serve on a free port, for as long as the process lives. Gives the base URL.
pub(crate) async fn start(manner: Manner) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new()
        .route("/v1/responses", post(respond))
        .layer(axum::extract::DefaultBodyLimit::disable())
        .with_state(manner);
    let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
        let _ = stream.set_nodelay(true);
    });
    drop(tokio::spawn(async move { axum::serve(listener, app).await }));
    format!("http://{address}/v1")
}

async fn respond(
    State(manner): State<Manner>,
    body: Bytes,
) -> (StatusCode, [(header::HeaderName, header::HeaderValue); 1], String) {
    let json = header::HeaderValue::from_static("application/json");
    // The daemon only looks whether there is such a route.
    if body.len() < 16 {
        let error = r#"{"error":{"message":"'input' must be a list"}}"#.to_owned();
        return (StatusCode::BAD_REQUEST, [(header::CONTENT_TYPE, json)], error);
    }
    if let Manner::Hang = manner {
        std::future::pending::<()>().await;
    }
    let steps = manner.steps();
    let taken = memmem::find_iter(&body, b"function_call_output").count();
    let output = match taken < steps {
        true => call(manner, taken + 1),
        false => WORD.to_owned(),
    };
    let response = format!(
        r#"{{"id":"resp_{taken}","object":"response","created_at":0,"status":"completed","model":"m",
"output":[{output}],"parallel_tool_calls":true,"tool_choice":"auto","tools":[],
"usage":{{"input_tokens":9,"input_tokens_details":{{"cached_tokens":0}},"output_tokens":9,
"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":18}}}}"#
    );
    (StatusCode::OK, [(header::CONTENT_TYPE, json)], response)
}

const WORD: &str = r#"{"type":"message","id":"msg_1","role":"assistant","status":"completed",
"content":[{"type":"output_text","text":"done","annotations":[]}]}"#;

fn call(manner: Manner, step: usize) -> String {
    let name = manner.tool();
    let arguments = match manner {
        Manner::Reads(_) => r#"{\"path\":\"in.txt\"}"#.to_owned(),
        _ => format!(r#"{{\"path\":\"out.txt\",\"content\":\"step {step}\\n\"}}"#),
    };
    format!(
        r#"{{"type":"function_call","id":"fc_{step}","call_id":"call_{step}","name":"{name}",
"arguments":"{arguments}","status":"completed"}}"#
    )
}
