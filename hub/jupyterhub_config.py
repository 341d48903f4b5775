"""The hub's configuration: the platform's table of contents. Each subject is one call; its module says what it sets.

The supervisor runs it with CELLWORK_HOME and every setting in the environment.
"""

from cellwork_hub.config.culling import set_culling
from cellwork_hub.config.hub import set_hub
from cellwork_hub.config.pages import set_pages
from cellwork_hub.config.proxy import set_proxy
from cellwork_hub.config.revocation import set_revocation
from cellwork_hub.config.roles import set_roles
from cellwork_hub.config.services import set_services
from cellwork_hub.config.spawner import set_spawner
from cellwork_hub.config.users import set_users
from cellwork_hub.context import Context

c = get_config()
context = Context.load()

set_hub(c, context.settings, context.ports)
set_proxy(c, context.settings, context.ports)
set_users(c, context.settings, context.ports)
set_roles(c, context.settings, context.ports)
set_services(c, context.settings, context.ports)
set_spawner(c, context.settings, context.ports)
set_culling(c, context.settings, context.ports)
set_revocation(c, context.settings, context.ports)
set_pages(c, context.settings, context.ports)
