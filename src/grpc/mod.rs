//! The gRPC API: requests to use cases, results to answers. Decides nothing.

mod admin;
mod approvals;
mod audit;
mod backup;
mod caller;
mod convert;
mod forks;
mod health;
mod outlet;
mod page;
mod policy;
mod prune;
mod reflection;
mod roles;
mod runs;
mod tools;

pub use admin::Info;
pub use caller::{Door, named};

use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    engine::Engine,
    proto::v1::{
        admin_service_server::AdminServiceServer, audit_service_server::AuditServiceServer,
        policy_service_server::PolicyServiceServer, run_service_server::RunServiceServer,
        tool_service_server::ToolServiceServer,
    },
};

/// Largest request of `RunService`, in bytes: a task of 1 MiB and room for the rest.
const REQUEST_BYTES: usize = 2 << 20;
/// Largest request of every other service, in bytes: they take names and tokens.
const SMALL_REQUEST_BYTES: usize = 64 << 10;

/// Names that `grpc.health.v1` knows besides the empty one.
pub const HEALTH_NAMES: [&str; 8] = [
    "liveness",
    "readiness",
    "startup",
    "agentd.v1.RunService",
    "agentd.v1.AdminService",
    "agentd.v1.AuditService",
    "agentd.v1.PolicyService",
    "agentd.v1.ToolService",
];

/// All services, once for each door that callers come through, and the switch of their health.
pub async fn services<const DOORS: usize>(
    engine: &Engine,
    info: Info,
    doors: [Door; DOORS],
) -> ([Routes; DOORS], HealthReporter) {
    let (health, health_service) = tonic_health::server::health_reporter();
    for name in HEALTH_NAMES.into_iter().chain([""]) {
        health.set_service_status(name, ServingStatus::Serving).await;
    }
    let run_service = RunServiceServer::new(runs::Runs::new(engine.clone()));
    let tool_service = tools::Tools::new(engine.clone(), info.tools.clone());
    let tool_service = ToolServiceServer::new(tool_service);
    let admin_service = AdminServiceServer::new(admin::Admin::new(engine.clone(), info));
    let audit_service = AuditServiceServer::new(audit::Audit::new(engine.clone()));
    let policy_service = PolicyServiceServer::new(policy::Policies::new(engine.clone()));
    let mut routes = Routes::builder();
    routes
        .add_service(run_service.max_decoding_message_size(REQUEST_BYTES))
        .add_service(admin_service.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(audit_service.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(policy_service.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(tool_service.max_decoding_message_size(SMALL_REQUEST_BYTES))
        .add_service(health_service.max_decoding_message_size(SMALL_REQUEST_BYTES));
    let router = reflection::add_to(routes.routes().into_axum_router());
    let guarded = |door| caller::guard(router.clone(), door, engine.world().clock.clone());
    (doors.map(guarded), health)
}
