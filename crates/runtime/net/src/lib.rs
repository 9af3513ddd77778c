//! Pod network and service proxy: one owner of our links, routes and nftables table.
