//! `ToolService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::{
    domain::tool::{RegisteredTool, ToolSpec},
    engine::Engine,
    grpc::{
        convert,
        page::{self, List},
    },
    proto::v1::{self, tool_service_server::ToolService},
};

/// Tools of a page; there are never more than this build accepts.
const PAGE: usize = 200;

#[derive(Debug)]
pub(super) struct Tools {
    engine: Engine,
    registered: Arc<[RegisteredTool]>,
}

impl Tools {
    pub(super) fn new(engine: Engine, registered: Arc<[RegisteredTool]>) -> Self {
        Self { engine, registered }
    }
}

/// Every tool, in the order in which models are told of them.
pub(super) fn tools(engine: &Engine, registered: &[RegisteredTool]) -> Vec<v1::Tool> {
    let specs = engine.world().tools.specs().iter();
    specs.zip(registered).map(|(spec, registered)| tool(engine, spec, registered)).collect()
}

fn tool(engine: &Engine, spec: &ToolSpec, registered: &RegisteredTool) -> v1::Tool {
    let policy = engine.world().policies.current();
    let roles = policy.roles.iter();
    let roles = roles.filter(|(_, role)| role.tools.contains(&spec.name));
    v1::Tool {
        name: spec.name.to_string(),
        description: spec.description.to_string(),
        parameters_schema: spec.parameters.to_string(),
        result_schema: spec.result.as_deref().unwrap_or_default().to_owned(),
        version: registered.version,
        schema_sha256: registered.schema_sha256.clone(),
        source: registered.source.clone(),
        first_seen_time: Some(convert::timestamp(registered.first_seen)),
        roles: roles.map(|(name, _)| name.to_string()).collect(),
    }
}

#[tonic::async_trait]
impl ToolService for Tools {
    async fn list_tools(
        &self,
        request: Request<v1::ListToolsRequest>,
    ) -> Result<Response<v1::ListToolsResponse>, Status> {
        let request = request.into_inner();
        let size = page::size(request.page_size, PAGE)?;
        let all = tools(&self.engine, &self.registered);
        let list = List::new("ListTools", []);
        // A place is the name of the last tool of the page before.
        let start = match list.place(&request.page_token)? {
            None => 0,
            Some(last) => match all.iter().position(|tool| tool.name == last) {
                Some(place) => place + 1,
                None => {
                    let message = format!("its tool {last:?} is gone; begin anew");
                    return Err(convert::invalid("page_token", message));
                }
            },
        };
        let more = all.len() > start + size;
        let tools: Vec<_> = all.into_iter().skip(start).take(size).collect();
        let last = tools.last().filter(|_| more).map(|tool| list.token(&tool.name));
        let next_page_token = last.unwrap_or_default();
        Ok(Response::new(v1::ListToolsResponse { tools, next_page_token }))
    }

    async fn get_tool(
        &self,
        request: Request<v1::GetToolRequest>,
    ) -> Result<Response<v1::GetToolResponse>, Status> {
        let name = request.into_inner().name;
        if name.is_empty() {
            return Err(convert::invalid("name", "is empty; ListTools tells the names".into()));
        }
        let mut tools = tools(&self.engine, &self.registered).into_iter();
        match tools.find(|tool| tool.name == name) {
            Some(tool) => Ok(Response::new(v1::GetToolResponse { tool: Some(tool) })),
            None => Err(convert::unknown_tool(&name)),
        }
    }
}
