using System;

namespace TileCache.Client
{
    /// <summary>
    /// A replica has ended, because its stream was refused in a way that cannot heal: the area is too large, or the daemon
    /// is older than contract 1.5.0. The inner exception is the cause.
    /// </summary>
    public sealed class TileReplicaException : Exception
    {
        internal TileReplicaException(Exception cause)
            : base("The replica has ended: " + cause.Message, cause)
        {
        }
    }
}
