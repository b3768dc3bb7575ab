//! `AdminService`.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    agents::Agent,
    config::ShownValue,
    domain::{
        ids::{Timestamp, ToolName},
        tool::RegisteredTool,
    },
    engine::{Engine, Intake, Store},
    grpc::{
        backup, caller, convert, health,
        page::{self, List},
        tools,
    },
    proto::v1::{self, admin_service_server::AdminService},
};

/// Agents of a page, if the caller does not say.
const AGENTS: usize = 200;

/// What the daemon knows of itself.
#[derive(Debug, Clone)]
pub struct Info {
    pub started: Timestamp,
    pub backend_url: String,
    pub model: Option<String>,
    pub workspace_root: String,
    pub state_directory: String,
    pub sqlite_version: String,
    /// In the order in which models are told of them.
    pub tools: Arc<[RegisteredTool]>,
    /// The settings in force, secrets hidden.
    pub config: Arc<[ShownValue]>,
    pub config_file: Option<String>,
}

#[derive(Debug)]
pub(super) struct Admin {
    engine: Engine,
    info: Info,
}

impl Admin {
    pub(super) fn new(engine: Engine, info: Info) -> Self {
        Self { engine, info }
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn drain(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainResponse>, Status> {
        let by = caller::of(&request)?.caller;
        let request = request.into_inner();
        let drained = match (request.only_tell, request.undo) {
            (true, _) => Ok(self.engine.drained()),
            (false, true) => self.engine.set_intake(by, Intake::Open).await,
            (false, false) => self.engine.set_intake(by, Intake::Closed).await,
        };
        let drained = drained.map_err(convert::status)?;
        let count = |runs: usize| u32::try_from(runs).unwrap_or(u32::MAX);
        Ok(Response::new(v1::DrainResponse {
            draining: drained.intake == Intake::Closed,
            running: count(drained.running),
            queued: count(drained.queued),
        }))
    }

    type BackupDatabaseStream = ReceiverStream<Result<v1::BackupDatabaseResponse, Status>>;

    async fn backup_database(
        &self,
        request: Request<v1::BackupDatabaseRequest>,
    ) -> Result<Response<Self::BackupDatabaseStream>, Status> {
        let by = caller::of(&request)?.caller;
        let (copy, place) = self.engine.backup(by).await.map_err(convert::status)?;
        let (out, stream) = mpsc::channel(1);
        let sending = async move {
            backup::send(copy, out).await;
            drop(place);
        };
        self.engine.spawn_stream(sending).map_err(convert::status)?;
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn get_config(
        &self,
        _request: Request<v1::GetConfigRequest>,
    ) -> Result<Response<v1::GetConfigResponse>, Status> {
        let value = |shown: &ShownValue| v1::ConfigValue {
            key: shown.key.clone(),
            value: shown.value.clone(),
            source: shown.source.clone(),
        };
        let values = self.info.config.iter().map(value).collect();
        let file = self.info.config_file.clone().unwrap_or_default();
        Ok(Response::new(v1::GetConfigResponse { file, values }))
    }

    async fn get_server_info(
        &self,
        _request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let (info, world, limits) = (&self.info, self.engine.world(), self.engine.limits());
        let standing = world.policies.standing();
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Ok(Response::new(v1::GetServerInfoResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            sqlite_version: info.sqlite_version.clone(),
            start_time: Some(convert::timestamp(info.started)),
            backend_url: info.backend_url.clone(),
            model: info.model.clone().unwrap_or_default(),
            workspace_root: info.workspace_root.clone(),
            state_dir: info.state_directory.clone(),
            policy_revision: standing.policy.revision.to_string(),
            policy_faults: standing.faults.to_vec(),
            sandbox_limits: world.sandbox.mechanisms().into_iter().collect(),
            tools: tools::tools(&self.engine, &info.tools),
            max_running_runs: count(limits.running_runs),
            max_queued_runs: count(limits.queued_runs),
            entries: world.journal.watch_head().borrow().0,
            commits: world.journal.commits(),
        }))
    }

    async fn get_health(
        &self,
        _request: Request<v1::GetHealthRequest>,
    ) -> Result<Response<v1::GetHealthResponse>, Status> {
        let found = self.engine.health().await;
        Ok(Response::new(v1::GetHealthResponse {
            status: health::colour(found.status).into(),
            reasons: found.reasons,
            backends: found.backends.iter().map(health::backend).collect(),
            sandbox_limits: found.sandbox.into_iter().collect(),
            policy_revision: found.policy_revision.to_string(),
            store_works: found.store == Store::Works,
            draining: found.intake == Intake::Closed,
        }))
    }

    async fn probe_backend(
        &self,
        request: Request<v1::ProbeBackendRequest>,
    ) -> Result<Response<v1::ProbeBackendResponse>, Status> {
        let name = request.into_inner().name;
        let probed = self.engine.probe_backend(&name).await.map_err(convert::status)?;
        Ok(Response::new(v1::ProbeBackendResponse {
            backend: Some(health::backend(&probed.health)),
            models: probed.models,
            remarks: probed.remarks,
        }))
    }

    async fn list_agents(
        &self,
        request: Request<v1::ListAgentsRequest>,
    ) -> Result<Response<v1::ListAgentsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size, AGENTS)?;
        let list = List::new("ListAgents", []);
        // A place is the number of agents before it: those of a daemon never change.
        let start = list.number(&request.page_token)?.unwrap_or(0);
        let world = self.engine.world();
        let policy = world.policies.current();
        let granted = |agent: &Agent| {
            let role = policy.roles.get(&agent.role);
            let specs = world.tools.specs().iter().map(|spec| &spec.name);
            let own = |name: &&ToolName| agent.tools.as_ref().is_none_or(|own| own.contains(name));
            let mine = specs.filter(own);
            let mine = mine.filter(|name| role.is_some_and(|role| role.tools.contains(name)));
            mine.map(ToString::to_string).collect()
        };
        let all = world.agents();
        let page = all.iter().skip(start).take(size);
        let more = all.len() > start.saturating_add(size);
        Ok(Response::new(v1::ListAgentsResponse {
            agents: page
                .map(|agent| {
                    let errands = world.agents.errands.get(&agent.name);
                    let errands = errands.map_or(&[][..], |errands| errands);
                    convert::agent(agent, granted(agent), world.mind(&agent.name), errands)
                })
                .collect(),
            next_page_token: match more {
                true => list.token(&(start + size).to_string()),
                false => String::new(),
            },
        }))
    }
}
