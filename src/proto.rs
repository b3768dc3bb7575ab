//! The generated code of `proto/agentd/v1`, and its descriptors for reflection. Nothing else.

/// Package `agentd.v1`.
pub mod v1 {
    #![expect(
        clippy::allow_attributes,
        clippy::allow_attributes_without_reason,
        clippy::too_many_lines,
        reason = "generated"
    )]
    tonic::include_proto!("agentd.v1");
}

/// The descriptor set of the package, encoded.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agentd_descriptor.bin"));
