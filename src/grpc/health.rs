//! How backends are, as callers are told.

use crate::{domain::backend::Colour, engine::BackendHealth, grpc::convert, proto::v1};

pub(super) fn colour(colour: Colour) -> v1::HealthStatus {
    match colour {
        Colour::Green => v1::HealthStatus::Green,
        Colour::Degraded => v1::HealthStatus::Degraded,
        Colour::Red => v1::HealthStatus::Red,
    }
}

pub(super) fn backend(health: &BackendHealth) -> v1::BackendHealth {
    let can = health.capabilities;
    v1::BackendHealth {
        name: health.name.to_string(),
        url: health.url.clone(),
        status: colour(health.colour).into(),
        why: health.why.clone().unwrap_or_default(),
        profile: health.profile.to_string(),
        reachable: health.is_reachable,
        awaited: health.is_awaited,
        last_ok: health.last_ok.map(convert::timestamp),
        capabilities: Some(v1::Capabilities {
            agents_api: can.agents,
            responses_api: can.responses,
            chat_api: can.chat,
            streaming: can.streaming,
            stateful: can.stateful,
            structured_output: can.structured_output,
            compaction: can.compaction,
        }),
    }
}
