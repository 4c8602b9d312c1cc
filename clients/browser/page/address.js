/** Where the page's server has its sessions. */

const DEFAULT_PORTS = { "http:": "80", "https:": "443" };

/**
 * The page's own address, unless sessions have a port of their own. Then it is that one, but not if the page came by
 * another port than the server's: a proxy stands between, or a container, whose ports only they know.
 *
 * @param {string} page its address
 * @param {string} [ports] the server's for pages, and its for sessions
 */
export function sessionsAddress(page, ports) {
  const address = new URL(".", page);
  const [here, there] = ports?.split(" ") ?? [];
  if (here === (address.port || DEFAULT_PORTS[address.protocol])) address.port = there;
  return address.href;
}
