//! Our hold on the kernel: rtnetlink and nftables connections into one namespace, and sysctls.
//!
//! Everything the crate does to the kernel goes through here, so the netlink library can be replaced.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nlink::netlink::link::{BridgeLink, BridgePortConfig, LinkCreateExt, VethLink};
use nlink::netlink::netfilter::{ConntrackFilter, IpProtocol};
use nlink::netlink::nftables::{Chain, Family as NftFamily, Rule, Set, SetElement, Transaction};
use nlink::netlink::types::route::RouteScope;
use nlink::netlink::{Connection, InterfaceRef, Netfilter, Nftables, Route};
use nlink::{Ipv4Address, Ipv4Route, Ipv6Address, Ipv6Route};

use crate::error::KernelContext;
use crate::rules::RuleBody;
use crate::{Cidr, Error, Result};

/// Every host end of a pod's link starts with it.
pub const VETH_PREFIX: &str = "dhow-";

/// A whole rebuild for thousands of services is one datagram; the default buffer is far smaller.
const SEND_BUFFER: libc::c_int = 64 << 20;
/// Elements of one message: their nest must stay under 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 400;
/// `RT_TABLE_MAIN`
pub(crate) const MAIN_TABLE: u32 = 254;
const LOOPBACK_INDEX: u32 = 1;

/// Connections into the namespace that plays the host. One per [`crate::Net`].
pub(crate) struct Kernel {
    netns: Option<OwnedFd>,
    pub(crate) route: Connection<Route>,
    nft: Connection<Nftables>,
    conntrack: Connection<Netfilter>,
    table: String,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("table", &self.table).finish_non_exhaustive()
    }
}

impl Kernel {
    pub fn connect(netns: Option<OwnedFd>, table: &str) -> Result<Self> {
        let fd = netns.as_ref().map(|fd| fd.as_fd());
        let route = match fd {
            Some(fd) => Connection::<Route>::new_in(fd),
            None => Connection::<Route>::new(),
        };
        let nft = match fd {
            Some(fd) => Connection::<Nftables>::new_in(fd),
            None => Connection::<Nftables>::new(),
        };
        let conntrack = match fd {
            Some(fd) => Connection::<Netfilter>::new_in(fd),
            None => Connection::<Netfilter>::new(),
        };
        let open = || "open netlink sockets".to_owned();
        let kernel = Self {
            route: route.doing(open)?,
            nft: nft.doing(open)?,
            conntrack: conntrack.doing(open)?,
            table: table.to_owned(),
            netns,
        };
        raise_send_buffer(kernel.nft.socket().as_fd());
        Ok(kernel)
    }

    /// The namespace that plays the host, unless it is our own.
    pub fn namespace(&self) -> Result<Option<OwnedFd>> {
        let path = || Path::new("the host's network namespace").to_owned();
        let copy = self.netns.as_ref().map(OwnedFd::try_clone).transpose();
        copy.map_err(|source| Error::File { context: "open", path: path(), source })
    }

    // -- links, addresses, routes -------------------------------------------------------------------

    pub async fn link_index(&self, name: &str) -> Result<Option<u32>> {
        let link = self.route.get_link_by_name(name).await.doing(|| format!("look up link {name}"))?;
        Ok(link.map(|link| link.ifindex()))
    }

    /// Makes the bridge unless it is there, gives it its addresses and brings it up.
    pub async fn ensure_bridge(&self, name: &str, addresses: &[(IpAddr, u8)], mtu: u32) -> Result<u32> {
        if self.link_index(name).await?.is_none() {
            // A fixed MAC address: a bridge otherwise takes its lowest port's, and changes it as pods come
            // and go, under the feet of the pods' neighbour tables.
            let [a, b, c, d] = match addresses.first() {
                Some((IpAddr::V4(address), _)) => address.octets(),
                Some((IpAddr::V6(address), _)) => {
                    let [a, b, .., c, d] = (address.to_bits() >> 64).to_be_bytes();
                    [a, b, c, d]
                }
                None => [0, 0, 0, 1],
            };
            let bridge = BridgeLink::new(name).mtu(mtu).address([0x02, 0x64, a, b, c, d]).stp(false).up();
            self.route.add_link(bridge).await.doing(|| format!("create bridge {name}"))?;
        }
        let index = self.link_index(name).await?.ok_or_else(|| Error::NoInterface(name.to_owned()))?;
        self.set_mtu(index, mtu).await?;
        self.route.set_link_up_by_index(index).await.doing(|| format!("bring up {name}"))?;
        let held = self.route.get_addresses_by_index(index).await.doing(|| format!("list addresses of {name}"))?;
        for (address, prefix) in addresses {
            if !held.iter().any(|a| a.primary_address() == Some(address) && a.prefix_len() == *prefix) {
                add_address(&self.route, index, *address, *prefix)
                    .await
                    .doing(|| format!("give {address}/{prefix} to {name}"))?;
            }
        }
        Ok(index)
    }

    /// Routes `cidr` into the link, from `source`.
    pub async fn ensure_link_route(&self, cidr: Cidr, index: u32, source: IpAddr) -> Result<()> {
        let routed = match (cidr.network(), source) {
            (IpAddr::V4(network), IpAddr::V4(source)) => {
                let route = Ipv4Route::new(network, cidr.prefix()).dev_index(index);
                self.route.replace_route(route.scope(RouteScope::Link).prefsrc(source)).await
            }
            (IpAddr::V6(network), IpAddr::V6(source)) => {
                let route = Ipv6Route::new(network, cidr.prefix()).dev_index(index).prefsrc(source);
                self.route.replace_route(route).await
            }
            _ => return Err(Error::InvalidConfig(format!("{cidr} and {source} are of two families"))),
        };
        routed.doing(|| format!("route {cidr}"))
    }

    /// The largest packet that the link with this address carries; that of Ethernet where that is not known.
    pub async fn underlay_mtu(&self, address: Option<IpAddr>) -> Result<u32> {
        const ETHERNET: u32 = 1500;
        let Some(address) = address.filter(|address| !address.is_loopback()) else { return Ok(ETHERNET) };
        let addresses = self.route.get_addresses().await.doing(|| "list addresses".to_owned())?;
        let Some(held) = addresses.iter().find(|held| held.primary_address() == Some(&address)) else {
            return Ok(ETHERNET);
        };
        let link = self.route.get_link_by_index(held.ifindex()).await.doing(|| "look up the node's link".to_owned())?;
        Ok(link.and_then(|link| link.mtu()).filter(|mtu| (576..=65535).contains(mtu)).unwrap_or(ETHERNET))
    }

    /// Lets a link carry packets of up to this size.
    pub async fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        let link = self.route.get_link_by_index(index).await.doing(|| "look up a link".to_owned())?;
        if link.and_then(|link| link.mtu()) == Some(mtu) {
            return Ok(());
        }
        self.route.set_link_mtu_by_index(index, mtu).await.doing(|| format!("set a link's MTU to {mtu}"))
    }

    /// A connection for events, which cannot share one with requests.
    pub fn another_route_connection(&self) -> Result<Connection<Route>> {
        let connection = match self.netns.as_ref().map(|fd| fd.as_fd()) {
            Some(fd) => Connection::<Route>::new_in(fd),
            None => Connection::<Route>::new(),
        };
        connection.doing(|| "open a netlink socket".to_owned())
    }

    pub async fn remove_link(&self, name: &str) -> Result<bool> {
        self.route.del_link_if_exists(name).await.doing(|| format!("remove link {name}"))
    }

    /// The pods' links on the bridge.
    pub async fn pod_links(&self, bridge: u32) -> Result<Vec<String>> {
        let links = self.route.get_links().await.doing(|| "list links".to_owned())?;
        let ours = links.iter().filter(|link| link.master() == Some(bridge)).filter_map(|link| link.name());
        Ok(ours.filter(|name| name.starts_with(VETH_PREFIX)).map(str::to_owned).collect())
    }

    /// A veth pair: `name` on our side as a port of the bridge, `eth0` in the pod's namespace.
    pub async fn add_pod_link(&self, name: &str, bridge: u32, mtu: u32, pod: BorrowedFd<'_>) -> Result<()> {
        let link = VethLink::new(name, "eth0").mtu(mtu).peer_netns_fd(pod).master(InterfaceRef::Index(bridge)).up();
        self.route.add_link(link).await.doing(|| format!("create link {name}"))?;
        // Where br_netfilter is loaded, a pod that reaches itself through a service never leaves the bridge:
        // the frame has to go back out of the port it came from.
        let port = BridgePortConfig::new().hairpin(true);
        self.route.set_bridge_port(name, port).await.doing(|| format!("set hairpin mode on {name}"))
    }

    // -- nftables -------------------------------------------------------------------------------------

    pub fn batch(&self) -> Batch<'_> {
        Batch { kernel: self, transaction: self.nft.transaction(), operations: 0 }
    }

    pub async fn table_exists(&self) -> Result<bool> {
        let tables = self.nft.list_tables_in(NftFamily::Inet).await.doing(|| "list tables".to_owned())?;
        Ok(tables.iter().any(|t| t.name == self.table))
    }

    pub async fn chains(&self) -> Result<Vec<String>> {
        let chains = self.nft.list_chains_in(self.table.as_str(), NftFamily::Inet).await;
        let chains = chains.doing(|| "list chains".to_owned())?;
        Ok(chains.into_iter().map(|c| c.name).collect())
    }

    pub async fn sets(&self) -> Result<Vec<String>> {
        let sets = self.nft.list_sets_in(&self.table, NftFamily::Inet).await.doing(|| "list sets".to_owned())?;
        Ok(sets.into_iter().map(|s| s.name).collect())
    }

    pub async fn elements(&self, set: &str) -> Result<Vec<SetElement>> {
        let elements = self.nft.list_set_elements(&self.table, set, NftFamily::Inet).await;
        elements.doing(|| format!("list elements of {set}"))
    }

    pub async fn remove_table(&self) -> Result<bool> {
        let removed = self.nft.del_table_if_exists(self.table.as_str(), NftFamily::Inet).await;
        removed.doing(|| format!("remove table {}", self.table))
    }

    pub fn set(&self, name: &str) -> Set {
        Set::new(&self.table, name).family(NftFamily::Inet)
    }

    /// Forgets UDP flows to `address` and `port` that go to `endpoint`, or to anyone: nothing else ends them.
    pub async fn forget_udp_flows(
        &self,
        address: Option<IpAddr>,
        port: Option<u16>,
        endpoint: Option<IpAddr>,
    ) -> Result<usize> {
        let mut filter = ConntrackFilter::new().proto(IpProtocol::Udp);
        if let Some(endpoint) = endpoint {
            filter = filter.reply_src(endpoint);
        }
        if let Some(address) = address {
            filter = filter.orig_dst(address);
        }
        if let Some(port) = port {
            filter = filter.orig_dst_port(port);
        }
        let removed = self.conntrack.del_conntrack_matching(&filter).await;
        removed.doing(|| "forget UDP flows".to_owned())
    }

    /// Forgets the UDP flows for which `stale` says so of their destination, its port, and who answers.
    pub async fn forget_udp_flows_that(&self, stale: impl Fn(IpAddr, u16, IpAddr) -> bool) -> Result<usize> {
        let doing = || "forget UDP flows".to_owned();
        let filter = ConntrackFilter::new().proto(IpProtocol::Udp);
        let mut forgotten = 0;
        for flow in self.conntrack.get_conntrack_matching(&filter).await.doing(doing)? {
            let (Some(to), Some(port), Some(from)) = (flow.orig.dst_ip, flow.orig.dst_port, flow.reply.src_ip) else {
                continue;
            };
            if !stale(to, port, from) {
                continue;
            }
            match self.conntrack.del_conntrack_entry(&flow).await {
                Ok(()) => forgotten += 1,
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error).doing(doing),
            }
        }
        Ok(forgotten)
    }

    // -- sysctls --------------------------------------------------------------------------------------

    /// Lets hosts that learn their routes from routers go on doing so once they forward packets: the kernel otherwise
    /// stops listening. Returns the interfaces that were changed.
    pub async fn keep_router_advertisements(&self) -> Result<Vec<String>> {
        let path = Path::new("/proc/sys/net/ipv6/conf");
        let change = move || {
            let mut changed = Vec::new();
            for entry in std::fs::read_dir(path)? {
                let entry = entry?;
                let file = entry.path().join("accept_ra");
                if std::fs::read_to_string(&file).is_ok_and(|held| held.trim() == "1") {
                    std::fs::write(&file, "2")?;
                    changed.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
            Ok(changed)
        };
        let context = "change accept_ra below";
        self.inside("net-sysctl", change).await.map_err(|source| Error::File { context, path: path.to_owned(), source })
    }

    /// Writes `/proc/sys/net/<key>` in our namespace unless it holds `value`. Returns what it held.
    pub async fn sysctl(&self, key: &str, value: &'static str) -> Result<String> {
        let path = Path::new("/proc/sys/net").join(key);
        let change = {
            let path = path.clone();
            move || {
                let held = std::fs::read_to_string(&path)?.trim().to_owned();
                if held != value {
                    std::fs::write(&path, value)?;
                }
                Ok(held)
            }
        };
        self.inside("net-sysctl", change).await.map_err(|source| Error::File { context: "write", path, source })
    }

    /// A listening socket in our namespace.
    pub async fn listen(&self, address: SocketAddr) -> Result<tokio::net::TcpListener> {
        let listener = self.inside("net-listen", move || {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let listener = listener.await.and_then(tokio::net::TcpListener::from_std);
        listener.map_err(|source| Error::Listen { address, source })
    }

    /// Runs `work` in our namespace, on a thread of its own: it changes its namespace and then ends.
    pub(crate) async fn inside<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let netns = self.netns.as_ref().map(OwnedFd::try_clone).transpose()?;
        let (send, receive) = tokio::sync::oneshot::channel();
        let worker = move || {
            let done = (|| {
                if let Some(fd) = &netns {
                    let network = Some(rustix::thread::LinkNameSpaceType::Network);
                    rustix::thread::move_into_link_name_space(fd.as_fd(), network)?;
                }
                work()
            })();
            let _ = send.send(done);
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(worker)?;
        receive.await.unwrap_or_else(|_| Err(io::Error::other("the thread ended early")))
    }
}

async fn add_address(route: &Connection<Route>, index: u32, address: IpAddr, prefix: u8) -> nlink::Result<()> {
    match address {
        IpAddr::V4(address) => route.replace_address(Ipv4Address::with_index(index, address, prefix)).await,
        // Nobody else gives out addresses here; looking for one would hold the pod up for a second.
        IpAddr::V6(address) => route.replace_address(Ipv6Address::with_index(index, address, prefix).nodad()).await,
    }
}

/// Configures the inside of a pod's namespace: loopback, `eth0` with its addresses, the ways out. Each pair is an address
/// and the gateway of its family.
pub(crate) async fn configure_pod(netns: BorrowedFd<'_>, addresses: &[(IpAddr, IpAddr)]) -> Result<()> {
    let pod = Connection::<Route>::new_in(netns).doing(|| "open the pod's network namespace".to_owned())?;
    pod.set_link_up_by_index(LOOPBACK_INDEX).await.doing(|| "bring up the pod's lo".to_owned())?;
    let link = pod.get_link_by_name("eth0").await.doing(|| "look up the pod's eth0".to_owned())?;
    let index = link.ok_or_else(|| Error::NoInterface("eth0".to_owned()))?.ifindex();
    pod.set_link_up_by_index(index).await.doing(|| "bring up the pod's eth0".to_owned())?;
    for (address, gateway) in addresses {
        let prefix = Cidr::host(*address).prefix();
        add_address(&pod, index, *address, prefix).await.doing(|| format!("give {address} to the pod"))?;
        let routed = match gateway {
            IpAddr::V4(gateway) => {
                let link = Ipv4Route::new(*gateway, 32).dev_index(index).scope(RouteScope::Link);
                pod.replace_route(link).await.doing(|| "route the pod to its gateway".to_owned())?;
                pod.replace_route(Ipv4Route::default_route().gateway(*gateway).dev_index(index)).await
            }
            IpAddr::V6(gateway) => {
                let link = Ipv6Route::new(*gateway, 128).dev_index(index);
                pod.replace_route(link).await.doing(|| "route the pod to its gateway".to_owned())?;
                pod.replace_route(Ipv6Route::default_route().gateway(*gateway).dev_index(index)).await
            }
        };
        routed.doing(|| "set the pod's default route".to_owned())?;
    }
    Ok(())
}

/// One transaction on our table: all of it happens, or nothing.
#[must_use = "a batch does nothing until it is committed"]
pub(crate) struct Batch<'a> {
    kernel: &'a Kernel,
    transaction: Transaction,
    operations: usize,
}

impl Batch<'_> {
    fn map(mut self, f: impl FnOnce(Transaction, &str) -> Transaction) -> Self {
        self.transaction = f(self.transaction, &self.kernel.table);
        self.operations += 1;
        self
    }

    /// How many operations are queued.
    pub fn len(&self) -> usize {
        self.operations
    }

    pub fn add_table(self) -> Self {
        self.map(|t, table| t.add_table(table, NftFamily::Inet))
    }

    /// `chain` in its own words for hooks; the caller names our table.
    pub fn add_chain(self, chain: Chain) -> Self {
        self.map(|t, _| t.update_chain(chain.family(NftFamily::Inet)))
    }

    pub fn flush_chain(self, chain: &str) -> Self {
        self.map(|t, table| t.flush_chain(table, chain, NftFamily::Inet))
    }

    pub fn remove_chain(self, chain: &str) -> Self {
        self.map(|t, table| t.del_chain(table, chain, NftFamily::Inet))
    }

    pub fn add_rule(self, chain: &str, body: RuleBody) -> Self {
        self.map(|t, table| t.add_rule(Rule::new(table, chain).family(NftFamily::Inet).expressions(body.into_exprs())))
    }

    pub fn add_set(self, set: &Set) -> Self {
        let set = set.clone();
        self.map(|t, _| t.add_set(set))
    }

    pub fn remove_set(self, set: &str) -> Self {
        self.map(|t, table| t.del_set(table, set, NftFamily::Inet))
    }

    pub fn add_elements(mut self, set: &Set, elements: &[SetElement]) -> Self {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self = self.map(|t, _| t.add_set_elements(set, chunk));
        }
        self
    }

    pub fn remove_elements(mut self, set: &Set, elements: &[SetElement]) -> Self {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            self = self.map(|t, _| t.del_set_elements(set, chunk));
        }
        self
    }

    pub async fn commit(self) -> Result<()> {
        if self.operations == 0 {
            return Ok(());
        }
        let operations = self.operations;
        self.transaction
            .commit(&self.kernel.nft)
            .await
            .doing(|| format!("commit {operations} changes to table {}", self.kernel.table))
    }
}

/// Best effort: with too small a buffer a large transaction fails with a clear error.
fn raise_send_buffer(socket: BorrowedFd<'_>) {
    let size = SEND_BUFFER;
    // SAFETY: the descriptor is open for the call, and the pointer and length describe `size`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_SNDBUFFORCE,
            std::ptr::from_ref(&size).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result != 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "cannot raise the netlink send buffer");
    }
}
