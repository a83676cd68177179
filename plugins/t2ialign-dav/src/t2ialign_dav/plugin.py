"""What this package registers; imports no torch."""

from t2ialign import hookimpl
from t2ialign.hookspecs import Register
from t2ialign_dav.config import DavConfig, DavSearchConfig, DavUpstreamConfig


@hookimpl
def t2ialign_optimizers(register: Register) -> None:
    register(
        "dav",
        "t2ialign_dav.optimizer:Dav",
        config=DavConfig,
        summary="search good trajectories at test time, then learn to follow them; any reward, keeps diversity",
    )
    register(
        "dav-upstream",
        "t2ialign_dav.optimizer:DavUpstream",
        config=DavUpstreamConfig,
        summary="DAV as its published code does it: tree search, one trajectory at a time",
    )
    register(
        "dav-search",
        "t2ialign_dav.search_only:DavSearch",
        config=DavSearchConfig,
        summary="DAV's search alone, nothing is trained: better images at inference",
        provides={"search"},
    )
