//! What passed the links of a network, as a process in it sees them.

/// Counters of one link since it is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkStats {
    pub name: String,
    pub received_bytes: u64,
    pub received_errors: u64,
    pub sent_bytes: u64,
    pub sent_errors: u64,
}

/// Those that a process sees, loopback and the host's ends of containers' links aside; none once the process is gone.
pub fn of_process(pid: u32) -> Vec<LinkStats> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default())
}

fn parse(text: &str) -> Vec<LinkStats> {
    // Beginnings of names that kubelets leave out, too.
    const OTHERS: [&str; 3] = ["veth", "docker", "nerdctl"];
    // What the pod network calls the host's ends.
    let is_end = |name: &str| {
        let id = name.strip_prefix("dhow-").unwrap_or_default();
        id.len() == 10 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let link = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let name = name.trim();
        if name == "lo" || is_end(name) || OTHERS.iter().any(|other| name.starts_with(other)) {
            return None;
        }
        let counters: Vec<u64> = counters.split_whitespace().map_while(|word| word.parse().ok()).collect();
        // Received: bytes, packets, errors and five more; then the same of what was sent.
        let &[received_bytes, _, received_errors, _, _, _, _, _, sent_bytes, _, sent_errors, ..] = counters.as_slice()
        else {
            return None;
        };
        Some(LinkStats { name: name.to_owned(), received_bytes, received_errors, sent_bytes, sent_errors })
    };
    text.lines().filter_map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_from_proc() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
            eth0:1234567      20    3    0    0     0          0         0     7654      30    4    0    0     0       0          0\n \
            veth12: 1 1 1 0 0 0 0 0 1 1 1 0 0 0 0 0\n dhow-0123456789: 1 1 1 0 0 0 0 0 1 1 1 0 0 0 0 0\n";
        let eth0 = LinkStats {
            name: "eth0".into(),
            received_bytes: 1_234_567,
            received_errors: 3,
            sent_bytes: 7654,
            sent_errors: 4,
        };
        assert_eq!(parse(text), [eth0]);
    }

    #[test]
    fn a_process_that_is_gone_sees_none() {
        assert!(of_process(u32::MAX).is_empty());
    }
}
