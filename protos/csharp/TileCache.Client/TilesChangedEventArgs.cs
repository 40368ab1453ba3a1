using System;
using System.Collections.Generic;

namespace TileCache.Client
{
    /// <summary>Where tiles of a replica have changed.</summary>
    public sealed class TilesChangedEventArgs : EventArgs
    {
        internal TilesChangedEventArgs(IReadOnlyCollection<BlockKey> blocks)
        {
            Blocks = blocks;
        }

        /// <summary>The blocks of the tiles that were stored, changed or removed.</summary>
        public IReadOnlyCollection<BlockKey> Blocks { get; }
    }
}
