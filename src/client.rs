//! The other end of the API: where the daemon is, and typed clients for it.

use std::{fs, path::PathBuf};

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use crate::proto::v1::{
    admin_service_client::AdminServiceClient, audit_service_client::AuditServiceClient,
    policy_service_client::PolicyServiceClient, run_service_client::RunServiceClient,
    tool_service_client::ToolServiceClient,
};

/// Largest answer that is accepted, in bytes.
const ANSWER_BYTES: usize = 64 << 20;

/// Where the daemon is, and what proves who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// `unix:PATH`, or `http://HOST:PORT`.
    pub uri: String,
    /// Needed for TCP.
    pub token_file: Option<PathBuf>,
}

/// Why the daemon cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("{uri:?} is not an address such as unix:/path/agentd.sock or http://127.0.0.1:7080")]
    Address { uri: String },
    #[error(
        "agentd cannot be reached at {uri}. Start it with `agentd serve`, or name another with --addr"
    )]
    Unreachable { uri: String, source: tonic::transport::Error },
    #[error("the token file {path} cannot be read; it lies in the daemon's state directory")]
    Token { path: PathBuf, source: std::io::Error },
    #[error("the token file {path} does not hold a token")]
    NotAToken { path: PathBuf },
}

/// Clients of one daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    channel: InterceptedService<Channel, Bearer>,
}

/// Puts the token into every request.
#[derive(Debug, Clone)]
pub struct Bearer {
    header: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

impl Client {
    /// Connects. Errors say what to do.
    pub async fn connect(address: &Address) -> Result<Self, ConnectError> {
        let uri = address.uri.clone();
        let endpoint = Endpoint::from_shared(uri.clone())
            .map_err(|_| ConnectError::Address { uri: uri.clone() })?;
        let header = match &address.token_file {
            Some(path) => Some(bearer(path)?),
            None => None,
        };
        let channel =
            endpoint.connect().await.map_err(|source| ConnectError::Unreachable { uri, source })?;
        Ok(Self { channel: InterceptedService::new(channel, Bearer { header }) })
    }

    pub fn runs(&self) -> RunServiceClient<InterceptedService<Channel, Bearer>> {
        RunServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub fn admin(&self) -> AdminServiceClient<InterceptedService<Channel, Bearer>> {
        AdminServiceClient::new(self.channel.clone())
    }

    pub fn tools(&self) -> ToolServiceClient<InterceptedService<Channel, Bearer>> {
        ToolServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub fn policy(&self) -> PolicyServiceClient<InterceptedService<Channel, Bearer>> {
        PolicyServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub fn audit(&self) -> AuditServiceClient<InterceptedService<Channel, Bearer>> {
        AuditServiceClient::new(self.channel.clone()).max_decoding_message_size(ANSWER_BYTES)
    }

    pub fn health(
        &self,
    ) -> tonic_health::pb::health_client::HealthClient<InterceptedService<Channel, Bearer>> {
        tonic_health::pb::health_client::HealthClient::new(self.channel.clone())
    }
}

fn bearer(path: &PathBuf) -> Result<MetadataValue<Ascii>, ConnectError> {
    let token = fs::read_to_string(path)
        .map_err(|source| ConnectError::Token { path: path.clone(), source })?;
    let mut header = MetadataValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| ConnectError::NotAToken { path: path.clone() })?;
    header.set_sensitive(true);
    Ok(header)
}
