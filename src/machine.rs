//! What the machine, or the container around the process, offers.

/// Bytes of memory that this process may use; a cautious guess where the system does not say.
pub(crate) fn memory() -> u64 {
    const GUESS: u64 = 4 << 30;
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let total = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(1024)
    });
    // Version 2 of control groups, then version 1; a group without a limit says `max` or an absurd number.
    let limit = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .find_map(|path| read(path)?.trim().parse::<u64>().ok());
    match (total, limit) {
        (Some(total), Some(limit)) => total.min(limit),
        (Some(total), None) => total,
        (None, _) => GUESS,
    }
}
