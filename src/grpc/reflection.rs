//! What tells clients without proto files what there is. Made when it is first asked: to read every
//! description takes a quarter of the daemon's start, and few ask.

use std::sync::{Arc, OnceLock};

use axum::{
    Router,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    routing::post,
};
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::{
    grpc::{SMALL_REQUEST_BYTES, convert},
    proto::DESCRIPTORS,
};

const PATHS: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/{method}",
    "/grpc.reflection.v1alpha.ServerReflection/{method}",
];

type Made = Arc<OnceLock<Result<Router, tonic_reflection::server::Error>>>;

/// Adds reflection, in both of its versions.
pub(super) fn add_to(router: Router) -> Router {
    let made = Made::default();
    PATHS
        .into_iter()
        .fold(router, |router, path| router.route(path, post(reflect).with_state(made.clone())))
}

async fn reflect(State(made): State<Made>, request: Request) -> Response {
    match made.get_or_init(make) {
        Ok(services) => services.clone().oneshot(request).await.into_response(),
        Err(error) => convert::no_reflection(error).into_http(),
    }
}

fn make() -> Result<Router, tonic_reflection::server::Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (builder().build_v1()?, builder().build_v1alpha()?);
    let services = Routes::new(v1.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(v1alpha.max_decoding_message_size(SMALL_REQUEST_BYTES));
    Ok(services.into_axum_router())
}
