//! What the machine has, and what of it pods may use.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::resources::{List, milli, whole};
use crate::settings::Signal;
use crate::{NodeConfig, NodeSettings};

pub fn memory_bytes() -> u64 {
    let info = rustix::system::sysinfo();
    u64::from(info.mem_unit) * info.totalram
}

/// Bytes of huge pages by page size in bytes.
pub fn huge_pages() -> BTreeMap<u64, u64> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let count = std::fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
        Some((kib << 10, count.trim().parse::<u64>().ok()? * (kib << 10)))
    });
    sizes.collect()
}

/// `2Mi`, `1Gi`.
fn binary(bytes: u64) -> String {
    match bytes {
        b if b >= 1 << 30 && b % (1 << 30) == 0 => format!("{}Gi", b >> 30),
        b if b >= 1 << 20 && b % (1 << 20) == 0 => format!("{}Mi", b >> 20),
        b if b >= 1 << 10 && b % (1 << 10) == 0 => format!("{}Ki", b >> 10),
        b => b.to_string(),
    }
}

/// All there is.
pub fn capacity(config: &NodeConfig) -> List {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let disk = rustix::fs::statvfs(&config.root_dir).map_or(0, |s| s.f_blocks * s.f_frsize);
    let mut list = List::from([
        ("cpu".to_owned(), Quantity(cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{}Ki", memory_bytes() >> 10))),
        ("pods".to_owned(), Quantity(config.settings.max_pods.to_string())),
        ("ephemeral-storage".to_owned(), Quantity(format!("{}Ki", disk >> 10))),
    ]);
    for (size, bytes) in huge_pages() {
        list.insert(format!("hugepages-{}", binary(size)), Quantity(binary(bytes)));
    }
    list
}

/// Capacity less what is reserved, what hard eviction thresholds keep free, and what huge pages took.
pub fn allocatable(config: &NodeConfig) -> List {
    less(capacity(config), &config.settings)
}

fn less(mut list: List, settings: &NodeSettings) -> List {
    let pages: u64 =
        list.iter().filter(|(name, _)| name.starts_with("hugepages-")).filter_map(|(_, q)| whole(&q.0)).sum();
    let kept = |signal, capacity| {
        let hard = settings.eviction.iter().filter(|t| t.signal == signal && t.grace.is_none());
        hard.map(|t| t.least.of(capacity)).max().unwrap_or(0)
    };
    let reserved = |name: &str| settings.reserved.get(name).and_then(|q| milli(q)).unwrap_or(0);
    if let Some(cpu) = list.get_mut("cpu")
        && reserved("cpu") > 0
    {
        cpu.0 = format!("{}m", (milli(&cpu.0).unwrap_or(0) - reserved("cpu")).max(0));
    }
    for (name, signal, taken) in
        [("memory", Signal::MemoryAvailable, pages), ("ephemeral-storage", Signal::DiskAvailable, 0)]
    {
        let Some(quantity) = list.get_mut(name) else { continue };
        let bytes = whole(&quantity.0).unwrap_or(0);
        let reserved = u64::try_from(reserved(name) / 1000).unwrap_or(u64::MAX);
        let left = bytes.saturating_sub(kept(signal, bytes)).saturating_sub(reserved).saturating_sub(taken);
        quantity.0 = format!("{}Ki", left >> 10);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_not_for_pods() {
        let list = |pairs: &[(&str, &str)]| -> List {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect()
        };
        let settings = NodeSettings {
            reserved: [("cpu".to_owned(), "500m".to_owned()), ("memory".to_owned(), "24Mi".to_owned())].into(),
            ..NodeSettings::default()
        };
        let capacity = list(&[
            ("cpu", "2"),
            ("memory", "1048576Ki"),
            ("ephemeral-storage", "1000Ki"),
            ("hugepages-2Mi", "200Mi"),
            ("pods", "110"),
        ]);
        let expected = list(&[
            ("cpu", "1500m"),
            ("memory", "716800Ki"),
            ("ephemeral-storage", "950Ki"),
            ("hugepages-2Mi", "200Mi"),
            ("pods", "110"),
        ]);
        assert_eq!(less(capacity, &settings), expected);
    }

    #[test]
    fn page_sizes_have_short_names() {
        assert_eq!((binary(2 << 20), binary(1 << 30), binary(0)), ("2Mi".into(), "1Gi".into(), "0".into()));
    }
}
