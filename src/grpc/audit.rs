//! `AuditService`.

use tonic::{Request, Response, Status};

use crate::{
    engine::Engine,
    grpc::convert,
    proto::v1::{self, audit_service_server::AuditService},
};

#[derive(Debug)]
pub(super) struct Audit {
    engine: Engine,
}

impl Audit {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine }
    }
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn verify_audit(
        &self,
        _request: Request<v1::VerifyAuditRequest>,
    ) -> Result<Response<v1::VerifyAuditResponse>, Status> {
        let report = self.engine.verify().await.map_err(convert::status)?;
        let faults = report.faults.into_iter().map(|fault| v1::AuditFault {
            position: fault.position.0,
            run_id: fault.run.map(|run| run.to_string()).unwrap_or_default(),
            sequence: fault.sequence.0,
            what: fault.what,
        });
        let faults: Vec<_> = faults.collect();
        Ok(Response::new(v1::VerifyAuditResponse {
            intact: faults.is_empty(),
            entries: report.entries,
            runs: report.runs,
            head_hash: report.head.0.to_vec(),
            faults,
        }))
    }
}
