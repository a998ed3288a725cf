"""Whether a Ray cluster lets this process in.

A cluster may ask for a token. Ray's own client then tries for twenty seconds, writes to the
terminal, and says at last that the cluster cannot be reached. So the head node is asked one small
question first, with the token that Ray's client would send.
"""

import os

ASK_TIMEOUT_S = 2.0
METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
MODE_VARIABLE = "RAY_AUTH_MODE"
FIX = (
    f"set {MODE_VARIABLE}=token, and RAY_AUTH_TOKEN to the token of its head node "
    "(there: ~/.ray/auth_token, or `ray get-auth-token`)"
)


def why_refused(address: str) -> str:
    """What the cluster at `address` (host:port) has against this process; "" if nothing."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.exceptions import AuthenticationError

    try:
        with init_grpc_channel(address) as channel:
            channel.unary_unary(METHOD)(b"", timeout=ASK_TIMEOUT_S)
    except AuthenticationError:
        return f"{MODE_VARIABLE} is token, but there is no token"
    except grpc.RpcError as error:
        # Anything else is for Ray's own client to make out.
        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return _unauthenticated(address)
    return ""


def _unauthenticated(address: str) -> str:
    if os.environ.get(MODE_VARIABLE) == "token":
        return f"the Ray cluster at {address} refuses this token"
    return f"the Ray cluster at {address} asks for a token"
