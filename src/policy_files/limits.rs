//! Limits of calls, and of a run's calls together, from the shapes that people write to what holds. What keeps
//! them: `sandbox`, and `engine::ceiling`.

use crate::{
    domain::policy::{ApprovalRule, Limits, RunLimits},
    policy_files::{
        Sources,
        compiler::Compiler,
        shapes::{ApprovalsShape, LimitsShape, RunLimitsShape, ToolsFile},
    },
};

/// What a program has open before it has opened anything, with room for a library or two.
pub(super) const LEAST_FILES: u64 = 16;

impl Compiler {
    /// What one call may have, all of them together must be allowed to have.
    pub(super) fn run_limits(&mut self, sources: &Sources, tools: &ToolsFile) -> RunLimits {
        let file = &sources.tools.name;
        let most = &tools.run_limits;
        let mut calls = vec![("limits".to_owned(), tools.limits.compile())];
        calls.extend(tools.commands.iter().filter_map(|command| {
            let limits = command.limits.as_ref()?.compile();
            Some((format!("commands.{}.limits", command.id.value), limits))
        }));
        calls.extend(sources.declared.iter().map(|tool| {
            let limits = tool.limits.over(tools.limits.compile());
            (format!("the declared tool {}", tool.spec.name), limits)
        }));
        let run = most.compile();
        for (name, most) in [
            ("memory_mib", most.memory_mib),
            ("processes", most.processes),
            ("cpu_seconds", most.cpu_seconds),
        ] {
            if most == Some(0) {
                self.fault(file, "run_limits", &format!("{name} is 0; give at least 1"));
            }
        }
        for (of, limits) in &calls {
            for (name, wanted, most) in [
                ("memory_mib", limits.memory_bytes, run.memory_bytes),
                ("processes", limits.processes, run.processes),
                ("cpu_seconds", limits.cpu_seconds, run.cpu_seconds),
            ] {
                if most.is_some_and(|most| most < wanted) {
                    let message = format!(
                        "{name} is less than {of} gives one call; give the run as much at least"
                    );
                    self.fault(file, "run_limits", &message);
                }
            }
        }
        run
    }

    /// How people are asked: within a year at most, so that nothing waits for ever.
    pub(super) fn approvals(&mut self, file: &str, shape: ApprovalsShape) -> ApprovalRule {
        const MOST: u64 = 365 * 24 * 3600;
        let ApprovalsShape { expire_seconds, by_submitter } = shape;
        if !(1..=MOST).contains(&expire_seconds) {
            let message = format!("expire_seconds is {expire_seconds}; give 1 to {MOST}");
            self.fault(file, "approvals", &message);
        }
        ApprovalRule { expire_ms: expire_seconds.min(MOST) * 1000, by_submitter }
    }

    pub(super) fn limits(&mut self, file: &str, key: &str, limits: &LimitsShape) {
        for (name, limit) in [
            ("wall_seconds", limits.wall_seconds),
            ("cpu_seconds", limits.cpu_seconds),
            ("cpu_percent", limits.cpu_percent.unwrap_or(1)),
            ("memory_mib", limits.memory_mib),
            ("processes", limits.processes),
            ("open_files", limits.open_files),
            ("file_mib", limits.file_mib),
            ("tmp_mib", limits.tmp_mib),
            ("stdout_mib", limits.stdout_mib),
            ("stderr_mib", limits.stderr_mib),
        ] {
            if limit == 0 {
                self.fault(file, key, &format!("limits: {name} is 0; give at least 1"));
            }
        }
        if (1..LEAST_FILES).contains(&limits.open_files) {
            let message =
                format!("limits: open_files: no program starts with less than {LEAST_FILES}");
            self.fault(file, key, &message);
        }
    }
}

impl RunLimitsShape {
    fn compile(&self) -> RunLimits {
        RunLimits {
            memory_bytes: self.memory_mib.map(|mib| mib.saturating_mul(1 << 20)),
            processes: self.processes,
            cpu_seconds: self.cpu_seconds,
        }
    }
}

impl LimitsShape {
    pub(super) fn compile(&self) -> Limits {
        const MIB: u64 = 1 << 20;
        Limits {
            wall_ms: self.wall_seconds.saturating_mul(1000),
            cpu_seconds: self.cpu_seconds,
            cpu_percent: self.cpu_percent,
            memory_bytes: self.memory_mib.saturating_mul(MIB),
            processes: self.processes,
            open_files: self.open_files,
            file_bytes: self.file_mib.saturating_mul(MIB),
            tmp_bytes: self.tmp_mib.saturating_mul(MIB),
            stdout_bytes: self.stdout_mib.saturating_mul(MIB),
            stderr_bytes: self.stderr_mib.saturating_mul(MIB),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        domain::ids::ToolName,
        policy_files::{Sources, compile},
    };

    #[test]
    fn a_run_is_given_at_least_as_much_as_any_one_of_its_calls() {
        let mut sources = Sources::built_in();
        let text = &sources.tools.text;
        sources.tools.text = text.replace(
            "run_limits: {memory_mib: 16384, processes: 2048, cpu_seconds: 14400}",
            "run_limits: {memory_mib: 1024, cpu_seconds: 0}",
        );
        assert_ne!(sources, Sources::built_in());
        let tools = ["read_file", "write_file", "edit_file", "list_dir", "search_files"];
        let tools = tools.into_iter().chain(["repo_summarize", "shell_exec"]).map(ToolName::new);
        let errors = compile(&sources, &tools.collect::<Vec<_>>()).unwrap_err().0.join("\n");
        for fault in [
            "run_limits: cpu_seconds is 0; give at least 1",
            "run_limits: memory_mib is less than limits gives one call; give the run as much at least",
        ] {
            assert!(errors.contains(fault), "{errors}");
        }
    }
}
