//! The kernel's part: addresses of balancers on the link of their network, and frames that tell of them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use nlink::netlink::{Connection, Route};
use nlink::{Ipv4Address, Ipv6Address};

use super::frames::announcement;
use crate::base_table::{BALANCER_ADDRESSES, filled_sets};
use crate::error::KernelContext;
use crate::rules::{address_key, read_address, set_name};
use crate::{Cidr, Error, Family, Net, Result};

impl Net {
    /// Addresses of balancers that this node answers for, as the kernel knows.
    pub(super) async fn balancer_addresses(&self) -> Result<Vec<IpAddr>> {
        let mut held = Vec::new();
        for family in Family::BOTH {
            let elements = self.kernel.elements(&set_name(family, BALANCER_ADDRESSES)).await?;
            held.extend(elements.iter().filter_map(|element| read_address(family, element.key())));
        }
        Ok(held)
    }

    /// Answers for the address from now on, and tells its network so. Unless it is renewed, it stays no longer than `life`.
    pub(super) async fn take_balancer_address(&self, address: IpAddr, life: Option<Duration>) -> Result<()> {
        let link = self.link_towards(address).await?;
        // The table first: nothing of the node itself may be reached by the address, not for a moment.
        if !self.balancer_addresses().await?.contains(&address) {
            let sets = filled_sets(&self.kernel);
            let name = set_name(Family::of(address), BALANCER_ADDRESSES);
            let set = sets.iter().find(|set| set.name() == name).expect("the base table has it");
            self.kernel.batch().add_elements(set, &[address_key(address)]).commit().await?;
        }
        self.hold(link.index, address, life).await?;
        self.tell_network(&link, address).await
    }

    /// Puts the address on a link, for `life` from now on. The kernel keeps the time: whoever dies holds nothing that is
    /// another's by then.
    async fn hold(&self, index: u32, address: IpAddr, life: Option<Duration>) -> Result<()> {
        let prefix = Cidr::host(address).prefix();
        let route = &self.kernel.route;
        let seconds = life.map_or(u32::MAX, |life| u32::try_from(life.as_secs()).unwrap_or(u32::MAX));
        let held = match address {
            IpAddr::V4(four) => {
                let own = Ipv4Address::with_index(index, four, prefix);
                route.replace_address(own.preferred_lifetime(seconds).valid_lifetime(seconds)).await
            }
            // Deprecated: what the node itself sends is not to come from it.
            IpAddr::V6(six) => {
                let own = Ipv6Address::with_index(index, six, prefix).nodad();
                route.replace_address(own.preferred_lifetime(0).valid_lifetime(seconds)).await
            }
        };
        held.doing(|| format!("give {address} to a link"))
    }

    /// Holds these addresses for another `life`, those that somebody took from their link too.
    pub(super) async fn renew_balancer_addresses(&self, addresses: &BTreeSet<IpAddr>, life: Duration) -> Result<()> {
        let held = self.kernel.route.get_addresses().await.doing(|| "list addresses".to_owned())?;
        for address in addresses {
            let prefix = Cidr::host(*address).prefix();
            let on = held.iter().find(|a| a.primary_address() == Some(address) && a.prefix_len() == prefix);
            match on {
                Some(on) => self.hold(on.ifindex(), *address, Some(life)).await?,
                None => self.take_balancer_address(*address, Some(life)).await?,
            }
        }
        Ok(())
    }

    /// Says once more where the address is.
    pub(super) async fn repeat_announcement(&self, address: IpAddr) -> Result<()> {
        let link = self.link_towards(address).await?;
        self.tell_network(&link, address).await
    }

    async fn tell_network(&self, link: &Link, address: IpAddr) -> Result<()> {
        let Some(mac) = link.mac else { return Ok(()) };
        let (index, frame) = (link.index, announcement(address, mac));
        let sent = self.kernel.inside("net-announce", move || send_frame(index, &frame)).await;
        sent.map_err(|source| Error::Announce { address, source })
    }

    /// Answers for the address no more.
    pub(crate) async fn drop_balancer_address(&self, address: IpAddr) -> Result<()> {
        let prefix = Cidr::host(address).prefix();
        let route = &self.kernel.route;
        let held = route.get_addresses().await.doing(|| "list addresses".to_owned())?;
        let held = held.iter().filter(|a| a.primary_address() == Some(&address) && a.prefix_len() == prefix);
        for index in held.map(|a| a.ifindex()) {
            let removed = route.del_address_by_index(index, address, prefix).await;
            removed.doing(|| format!("take {address} from a link"))?;
        }
        if self.balancer_addresses().await?.contains(&address) {
            let sets = filled_sets(&self.kernel);
            let name = set_name(Family::of(address), BALANCER_ADDRESSES);
            let set = sets.iter().find(|set| set.name() == name).expect("the base table has it");
            self.kernel.batch().remove_elements(set, &[address_key(address)]).commit().await?;
        }
        Ok(())
    }

    /// Forgets all of them: the end of the network.
    pub(crate) async fn drop_balancer_addresses(&self) -> Result<()> {
        if self.kernel.table_exists().await? {
            for address in self.balancer_addresses().await? {
                self.drop_balancer_address(address).await?;
            }
        }
        Ok(())
    }

    /// The link whose network the address is in, else that of the default route.
    async fn link_towards(&self, address: IpAddr) -> Result<Link> {
        let route: &Connection<Route> = &self.kernel.route;
        let links = route.get_links().await.doing(|| "list links".to_owned())?;
        let usable: Vec<_> = links
            .iter()
            .filter(|link| !link.is_loopback() && link.ifindex() != self.bridge_index && link.master().is_none())
            .collect();
        let addresses = route.get_addresses().await.doing(|| "list addresses".to_owned())?;
        let direct = addresses.iter().find(|held| {
            let own = held.primary_address().and_then(|own| Cidr::new(*own, held.prefix_len()));
            let network = own.filter(|network| *network != Cidr::host(network.network()));
            network.is_some_and(|network| network.contains(address))
                && usable.iter().any(|link| link.ifindex() == held.ifindex())
        });
        let index = match direct {
            Some(held) => Some(held.ifindex()),
            None => {
                let routes = route.get_routes().await.doing(|| "list routes".to_owned())?;
                let default = routes.iter().find(|route| {
                    let family = route.gateway().map(|gateway| Family::of(*gateway));
                    route.dst_len() == 0 && route.destination().is_none() && family == Some(Family::of(address))
                });
                default.and_then(|route| route.oif())
            }
        };
        let link = usable.iter().find(|link| Some(link.ifindex()) == index);
        let link = link.ok_or_else(|| Error::NoInterface(format!("towards {address}")))?;
        let mac = link.address().and_then(|mac| <[u8; 6]>::try_from(mac).ok());
        Ok(Link { index: link.ifindex(), mac })
    }
}

struct Link {
    index: u32,
    /// Links without one have no neighbours to tell.
    mac: Option<[u8; 6]>,
}

/// Sends a whole Ethernet frame.
fn send_frame(index: u32, frame: &[u8]) -> std::io::Result<()> {
    // SAFETY: the call takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all fields are integers, for which zero is a value.
    let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    to.sll_family = libc::AF_PACKET as u16;
    to.sll_ifindex = i32::try_from(index).unwrap_or_default();
    to.sll_halen = 6;
    to.sll_addr[..6].copy_from_slice(&frame[..6]);
    // SAFETY: the frame's pointer and length describe `frame`, the address' ones `to`; both live through the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            std::ptr::from_ref(&to).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if sent < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
