using System.Collections.Generic;

namespace TileCache.Client
{
    /// <summary>
    /// What is to be sent: the number, the followed areas, and the blocks that are held, or wanted anew, with their
    /// versions.
    /// </summary>
    internal sealed class ReplicaRequest
    {
        public ReplicaRequest(long number, IReadOnlyDictionary<BlockKey, string> held)
        {
            Number = number;
            Held = held;
        }

        public long Number { get; }

        public IReadOnlyDictionary<BlockKey, string> Held { get; }
    }
}
