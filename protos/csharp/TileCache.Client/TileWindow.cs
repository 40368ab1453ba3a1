using System.Collections.Generic;
using TileCache.V1;

namespace TileCache.Client
{
    /// <summary>
    /// What a replica holds in some cells, and how true it is. An empty window that is complete means that there is no
    /// tile; an empty one that is not means that nobody knows.
    /// </summary>
    public sealed class TileWindow
    {
        internal TileWindow(IReadOnlyList<TileMetadata> tiles, bool complete, double ageSeconds, bool degraded)
        {
            Tiles = tiles;
            Complete = complete;
            AgeSeconds = ageSeconds;
            Degraded = degraded;
        }

        /// <summary>The tiles. They must not be changed.</summary>
        public IReadOnlyList<TileMetadata> Tiles { get; }

        /// <summary>Whether every cell that was asked for is followed and held.</summary>
        public bool Complete { get; }

        /// <summary>
        /// Every change that was committed longer ago than this is in the tiles. Infinite if nothing is known.
        /// </summary>
        public double AgeSeconds { get; }

        /// <summary>Whether changes may go unnoticed at present.</summary>
        public bool Degraded { get; }
    }
}
